package tun

import "fmt"

const minMTU = 1280 // IPv6's (RFC 8200, section 5)

func checkOptions(o Options) error {
	if o.MTU < minMTU || o.MTU > maxPacket {
		return &OpenError{
			Name: o.Name,
			Err:  fmt.Errorf("MTU %d is out of range", o.MTU),
			hint: fmt.Sprintf("%d to %d bytes", minMTU, maxPacket),
		}
	}
	return nil
}
