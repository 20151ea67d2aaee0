// Package lab makes hosts out of Linux namespaces, joins them by a router, runs
// the tcpcrypt daemon in each and programs beside it. It needs no root where the
// kernel lets users create user namespaces, and it touches nothing outside.
//
// # What is made
//
//	        host a                    router                    host b
//	┌─────────────────────┐   ┌─────────────────────┐   ┌─────────────────────┐
//	│ tcpcrypt up, COMMAND │   │  capture   capture  │   │ tcpcrypt up, SERVER  │
//	│          eth0 ───────┼───┼─ to-a       to-b ───┼───┼────── eth0           │
//	│ 10.83.1.2            │   │ 10.83.1.1 10.83.2.1 │   │            10.83.2.2 │
//	│ fd83:0:0:1::2        │   │       (forwards)    │   │        fd83:0:0:2::2 │
//	└─────────────────────┘   └─────────────────────┘   └─────────────────────┘
//
// A host is a network, a mount and a UTS namespace: its own interfaces, its own
// /run (so every daemon has its default control socket), /sys, /etc/hosts and host
// name. Everything else of the file system is the caller's. The names of all hosts
// resolve to both addresses, NAME.ip4 and NAME.ip6 to one.
//
// # How nothing is left behind
//
// Namespaces die with the last process in them, so the lab makes sure that all of
// its processes die: they live in one PID namespace, whose init ends when the
// program outside ends, however that ends. No namespace is bound to a file, no
// directory is made outside the namespaces, and no mount is seen from there.
//
// # Use from tests and benchmarks
//
// The calling program is executed again inside, once, before it does anything:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m.Run)) }
//
//	func TestFetch(t *testing.T) {
//		l, err := lab.New(t.Context(), lab.Options{Hosts: []lab.HostOptions{{Name: "a"}, {Name: "b"}}, Program: bin})
//		...
//		defer l.Close()
//		srv, err := l.Host("b").Serve(t.Context(), "python3 -m http.server 80")
//		out, err := l.Host("a").Command(t.Context(), "curl", "-s", "http://b/").Output()
//
// The one idea to keep: a host is also an operating-system thread of this process
// that has entered the host's namespaces. [Host.Command] starts processes from it,
// and [Host.Do] runs a function on it: sockets opened there belong to that host.
package lab
