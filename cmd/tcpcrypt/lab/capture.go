package lab

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// A Capture is the file that a link has been captured in.
type Capture struct {
	Host    string `json:"host"`
	File    string `json:"file"`
	Packets uint64 `json:"packets"` // in the file
	Lost    uint64 `json:"lost"`    // passed by while neither memory nor disk had room
}

// A capture writes the packets of one link to a file until it is closed.
type capture struct {
	path   string
	host   *Host
	router *space
	ring   *ring
	file   *os.File
	writer *pcapgo.NgWriter
	marker []byte
	done   chan struct{} // closed when run has returned; err, packets and lost are set
	err    error

	packets, lost uint64
}

// flushLimit is how long the end of a capture may take to come by.
const flushLimit = 2 * time.Second

// markerType is the Ethernet type of the frame that tells a capture of its end: one of
// those that IEEE 802 keeps for local experiments, so nobody else takes notice.
const markerType = 0x88b5

// startCapture captures the link of a host, as the router sees it, from now on.
func startCapture(router *space, h *Host, path string) (*capture, error) {
	// Written to only, so that a FIFO somebody reads from will do as well.
	file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o644)
	if err != nil {
		return nil, err
	}
	c := &capture{path: path, host: h, router: router, file: file, done: make(chan struct{})}
	c.writer, err = pcapgo.NewNgWriterInterface(file, pcapgo.NgInterface{
		Name:                h.link.router,
		Description:         "link of host " + h.Name() + ", seen from the router",
		Comment:             "Large segments and missing checksums are the hosts' offloads: the link is memory.",
		OS:                  "linux",
		LinkType:            layers.LinkTypeEthernet,
		TimestampResolution: 9,
	}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{OS: "linux", Application: "tcpcrypt lab"}})
	if err == nil {
		err = router.do(func() error {
			c.ring, err = openRing(h.link.router)
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	// To and from nobody (00:00:00:00:00:00), so the host drops it as not its own.
	c.marker = append(binary.BigEndian.AppendUint16(make([]byte, 12), markerType), "end of capture, "+path...)
	go c.run()
	return c, nil
}

func (c *capture) run() {
	defer close(c.done)
	c.err = c.copy()
	lost, err := c.ring.lost()
	c.lost = lost
	c.err = errors.Join(c.err, err)
}

// copy writes packets to the file until it sees the marker.
func (c *capture) copy() error {
	ended := errors.New("marker seen")
	for {
		err := c.ring.read(func(p packet) error {
			if bytes.HasPrefix(p.data, c.marker) {
				return ended
			}
			c.packets++
			return c.writer.WritePacket(gopacket.CaptureInfo{Timestamp: p.at, CaptureLength: len(p.data), Length: max(p.length, len(p.data))}, p.data)
		})
		// After each block, so that the file is of use while the lab runs, and after a kill.
		if flushErr := c.writer.Flush(); err == nil || errors.Is(err, ended) {
			err = errors.Join(err, flushErr)
		}
		switch {
		case err == nil:
		case errors.Is(err, ended), errors.Is(err, os.ErrDeadlineExceeded):
			// The marker itself may have been lost, with others, to a full ring.
			return nil
		default:
			return err
		}
	}
}

// close writes what has passed until now and closes the file. The frame that it sends
// is behind everything else on the link; once it comes by, the capture is complete.
func (c *capture) close() error {
	sendErr := c.router.do(func() error { return sendFrame(c.host.link.router, c.marker) })
	deadlineErr := c.ring.setDeadline(time.Now().Add(flushLimit))
	<-c.done
	statsErr := c.writer.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{
		LastUpdate:      time.Now(),
		PacketsReceived: c.packets,
		PacketsDropped:  c.lost,
	})
	err := errors.Join(c.err, sendErr, deadlineErr, statsErr, c.writer.Flush(), c.ring.close(), c.file.Close())
	if err != nil {
		return fmt.Errorf("capture %s: %w", c.path, err)
	}
	return nil
}
