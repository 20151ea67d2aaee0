// Package routing decides which TCP connections of a Linux host go through a TUN
// device, and makes the kernel do it: addresses and routes of the link, FIB rules
// that capture by protocol, prefix and port, NAT for the way out and the way in,
// and the sysctls these need. All of it through netlink, applied as one transaction
// and undone as one. It knows nothing of the program behind the TUN: no crypto, no
// TCP stack.
//
// # The table and the kernel
//
// A Config holds two lists of rules, first match wins. Table answers from them in
// Go; the same lists are compiled to FIB rules (compile.go), and the two agree on
// every destination and port. What no rule names never comes near the TUN: not
// UDP, not ICMP, not another port, not the host's own addresses.
//
// # Order of a start
//
//	Check      refuses what can be refused, changes nothing
//	           (the caller opens the device, but does not read it yet)
//	Apply      everything stands; captured packets queue in the device
//	Existing   the connections that are older than the capture
//	           (the caller gives them to its stack and begins to read the device)
//	...
//	ResetCaptured, Close
//
// Existing is asked after Apply so that no connection falls between: one that is
// established while nobody reads the device cannot have come through it.
//
// # What survives us
//
// The nftables table with NAT and filters has the owner flag: the kernel drops it
// when the process ends, however it ends. The routes go with the device. The FIB
// rules and a small second table, the guard, stay behind: under Require nothing
// leaves in clear, under Opportunistic new connections flow as if we had never
// been there, and what was captured is reset instead of going on in clear. The next
// Apply recognises these leftovers and takes over from them without a gap; Clean
// removes them.
package routing
