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
// UDP, not ICMP, not another port, not the host's own addresses, and not what this
// host answers to connections that others have opened to it.
//
// # The ways of a packet
//
// S is the address of the stack behind the device, H that of the kernel.
//
//	outbound  program -> rule "to PREFIX ipproto tcp dport RANGE" -> device, with
//	          the host's own source address
//	wire      device, from S -> loop guard "iif DEVICE" -> the host's other rules ->
//	          source NAT -> uplink; answers come back by conntrack
//	inbound   client -> destination NAT to S -> device
//	delivery  device, from the client's address -> H -> service; its answers go by
//	          the rule "from H" to the device
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
// The nftables table with NAT and filters (nat_linux.go) has the owner flag: the
// kernel drops it when the process ends, however it ends. The routes go with the
// device. The FIB rules and a small second table, the guard (guard_linux.go), stay
// behind: under Require nothing leaves in clear, under Opportunistic new connections
// flow as if we had never been there, and what was captured is reset instead of
// going on in clear. The guard's comments are the sysctls that were changed. The next
// Apply recognises these leftovers and takes over from them without a gap; Clean
// removes them.
//
// Ours are: FIB rules of priority 2000 to 2999 and routes with protocol 69, routing
// table 29795, the nftables tables inet tcpcrypt and inet tcpcrypt_guard, and the bits
// 0x0c000000 of packet and connection marks.
//
// # Limits
//
// A routed connection that conntrack did not know before Apply (nothing on the host
// used it) is not listed by Existing. A firewall whose forward chain drops by default
// must be told to let the device's packets pass, and one that filters inbound
// connections by device sees them come from ours.
package routing
