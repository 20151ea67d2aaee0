// Package e2e holds the tests that judge the built tcpcrypt binary from the outside:
// daemons in network namespaces, real kernels, real programs, captures of the wire, an
// element in the path that tampers, and an independent implementation of the protocol
// (package wirepeer) as client and as server. Nothing of the product but package lab,
// which makes the namespaces, is linked in.
//
//	go test ./cmd/tcpcrypt/e2e
//
// Where the caller is not root, a user namespace serves. The programs come from these
// Debian packages: curl iperf3 iproute2 netcat-openbsd nftables openssh-client
// openssh-server postgresql procps redis-server util-linux. One that is missing fails
// the test that needs it, by name.
//
//	TCPCRYPT_BIN=PATH    tests that binary instead of building one
package e2e
