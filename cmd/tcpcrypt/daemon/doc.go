// Package daemon is `tcpcrypt up`: it joins the packages that each know one thing.
//
//	config   what the user wants
//	routing  makes the kernel hand over the captured connections, and undoes it
//	tun      the device they come through
//	stack    relays and encrypts them
//	control  tells others about it
//
// Run sets them up in the order in which nothing is lost, and takes them down in the
// reverse one.
package daemon
