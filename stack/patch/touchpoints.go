package main

// The whole list of what differs from upstream. Each entry must match exactly once
// in the package, or the generator fails and names it.

// A rename makes room for a function of ours that wraps upstream's.
type rename struct {
	recv string // receiver's type without the star; empty for a function
	name string // becomes name + "Upstream", and is never exported
	why  string
}

// A field is added at the end of one of upstream's structs.
type field struct {
	typ  string
	decl string
	why  string
}

// An anchor is one call inside a function of upstream's that is replaced: the
// callee's name only, with arguments put before the existing ones.
type anchor struct {
	recv, name string // the function that holds the call
	callee     string // the call, to a function of the package
	with       string // what is called instead
	args       string // arguments put before the existing ones
	why        string
}

var renames = []rename{
	{"Endpoint", "makeOptions", "the option of non-SYN segments"},
	{"Endpoint", "maxOptionSize", "payload size with and without that option"},
	{"handshake", "handleSegment", "the decision on a SYN-ACK, and a crossing SYN"},
	{"handshake", "transitionToStateEstablishedLocked", "the decision on the first ACK"},
	{"Endpoint", "handleSegmentLocked", "when to stop sending the option"},
	{"listenContext", "createConnectingEndpoint", "a passive open, with the peer's SYN"},
	{"Endpoint", "handleListenSegment", "no warning in the log that a peer can trigger"},
	{"", "calculateAdvertisedMSS", "the advertised MSS, by path and not by NIC alone"},
	{"sender", "updateMaxPayloadSize", "a path MTU update loses all that is in flight"},
	{"sender", "postXmit", "a timer as long as something is unacknowledged"},
	{"sender", "schedulePTO", "no tail loss probe within what scheduling takes"},
	{"sender", "sendSegmentFromPacketBuffer", "FIN in the segment with the last record's end"},
	{"Endpoint", "ModerateRecvBuf", "a window that opens because the buffer grew"},
	{"protocol", "NewEndpoint", "the endpoint that carries plaintext"},
	{"ForwarderRequest", "CreateEndpoint", "the same, under a Forwarder"},
	{"Endpoint", "cleanupLocked", "the end of an endpoint, however it comes"},
	{"receiver", "handleTimeWaitSegment", "a SYN that reopens a connection in TIME-WAIT"},
	{"Endpoint", "handleTimeWaitSegments", "hand that SYN to the Forwarder"},
	{"Endpoint", "getTimeWaitDuration", "TIME-WAIT per endpoint"},
}

var fields = []field{
	{"Endpoint", "ext *endpointExtension `state:\"nosave\"`", "what the extension knows of a connection; nil is plain upstream"},
	{"protocol", "ext *protocolExtension `state:\"nosave\"`", "the extension; nil is plain upstream"},
}

var anchors = []anchor{
	{"Endpoint", "sendSynTCP", "makeSynOptions", "e.extendedSynOptions", "tf, ", "the option of SYN segments"},
}

// unkeyed are structs of other packages whose literals upstream writes without field
// names, which go vet does not like: their fields in order. It is no touch point.
var unkeyed = map[string][]string{
	"header.SACKBlock": {"Start", "End"},
}
