// Package control talks to a running tcpcrypt daemon over its unix socket: HTTP with
// JSON, one request a path.
//
//	c := control.Client{Socket: control.DefaultSocket()}
//	conns, err := c.Conns(ctx, false)
//
// Fields are only ever added to the types, so a program may keep reading what it reads
// today.
package control
