// Package tun joins a TUN device to netstack, gVisor's TCP/IP in user space: packets
// that the kernel routes into the device reach a stack, and what the stack sends
// comes out of the device. It knows nothing of TCP connections, of crypto or of
// routes.
//
//	dev, err := tun.Open(tun.Options{Name: "tcpcrypt0", MTU: 65535})
//	...
//	link, err := tun.NewEndpoint(dev, tun.EndpointOptions{})
//	...
//	netstack.CreateNIC(1, link) // reads the device from here on
//	<-dev.Closed()              // someone deleted it, or took it down
//
// # Super-segments
//
// On Linux a packet crosses between kernel and netstack with a virtio-net header in
// front, which says what has been left undone: the checksum is that of the pseudo-
// header only, the segment is to be cut into pieces of so many bytes. Neither is
// ever done if both ends are on this machine. So one system call moves up to 64 KiB,
// and no byte is summed in software. That is the whole of the speed of this package.
//
// Where the kernel does not offer this, on other systems and with Options.NoOffload
// set, packets are cut and summed in software; they are the same packets. A kernel
// that offers it but refuses some super-segment gets that one in pieces.
//
// # The way of a packet
//
//	kernel -> device -> reader goroutine: virtio-net header, Bypass -> netstack
//	netstack, on the goroutine of whoever sends: virtio-net header -> device -> kernel
//
// # Tests
//
// Pipe joins two stacks in memory, with a hook in the path that may drop, delay,
// reorder and rewrite.
package tun
