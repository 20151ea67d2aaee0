// Package conformance holds the product against RFC 8547 and RFC 8548, rule by rule. It
// has tests alone: at one end of a link in memory is the real stack, as applications
// use it (package socket), at the other a scripted host that speaks raw segments and
// shares no code with it (package wirepeer).
//
// Each test is named by RFC and section; docs/conformance.md lists every rule with the
// tests that hold it, and TestTableIsComplete holds that list.
package conformance
