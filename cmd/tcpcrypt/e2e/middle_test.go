package e2e

import (
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/tcpcrypt/tcpcrypt/stack/conformance/wirepeer"
)

// A middle stands in the router's place between all hosts: whatever the router would
// forward is read, changed and sent on. Super-segments have been cut before.
type middle struct {
	link wirepeer.Link
	wg   sync.WaitGroup
	hook func(s *wirepeer.Segment) []*wirepeer.Segment
}

// middleTable is the router's routing table that leads to the middle.
const middleTable = 77

// intercept puts a middle in. Its hook gets each TCP segment, and returns what goes on
// in its place; everything else passes.
func (n *network) intercept(t *testing.T, hook func(s *wirepeer.Segment) []*wirepeer.Segment) {
	t.Helper()
	m := &middle{link: n.routerTUN(t, "middle"), hook: hook}
	err := inNamespace(n.router, func() error {
		return withLink("middle", func(h *netlink.Handle, dev netlink.Link) error {
			for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
				everywhere := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
				if family == unix.AF_INET6 {
					everywhere = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
				}
				if err := h.RouteAdd(&netlink.Route{LinkIndex: dev.Attrs().Index, Dst: everywhere, Table: middleTable}); err != nil {
					return fmt.Errorf("route: %w", err)
				}
				for _, host := range n.Hosts() {
					rule := netlink.NewRule()
					rule.Family, rule.IifName, rule.Table, rule.Priority = family, host.RouterInterface(), middleTable, middleTable
					if err := h.RuleAdd(rule); err != nil {
						return fmt.Errorf("rule: %w", err)
					}
				}
			}
			return nil
		})
	})
	if err != nil {
		t.Fatalf("put something in the path: %v", err)
	}
	m.wg.Go(m.run)
	t.Cleanup(func() {
		_ = m.link.Close()
		m.wg.Wait()
	})
}

func (m *middle) run() {
	packet := make([]byte, 65536)
	for {
		n, err := m.link.Read(packet)
		if err != nil {
			return
		}
		s, ok := wirepeer.ParseSegment(packet[:n])
		if !ok {
			_, _ = m.link.Write(packet[:n]) // what is refused is lost
			continue
		}
		for _, p := range m.hook(&s) {
			_, _ = m.link.Write(p.Packet())
		}
	}
}
