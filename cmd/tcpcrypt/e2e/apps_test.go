package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"testing"
)

// A transferServer takes connections until its listener is closed. On each it reads
// eight bytes that say how much the client wants, then the upload up to the client's
// end of file; it answers with the upload's SHA-256 and that much of stream.
type transferServer struct {
	wg   sync.WaitGroup
	mu   sync.Mutex
	errs []error
	from []netip.AddrPort // clients, as the service saw them
}

// serveTransfers starts one on the host. It is stopped with the test.
func (n *node) serveTransfers(t *testing.T, port uint16) *transferServer {
	t.Helper()
	l := n.listen(t, port)
	s := &transferServer{}
	s.wg.Go(func() {
		for {
			conn, err := l.AcceptTCP()
			if err != nil {
				return // closed
			}
			s.mu.Lock()
			s.from = append(s.from, addrPort(conn.RemoteAddr()))
			s.mu.Unlock()
			s.wg.Go(func() {
				if err := serveTransfer(conn); err != nil {
					s.mu.Lock()
					s.errs = append(s.errs, err)
					s.mu.Unlock()
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		s.wg.Wait()
	})
	return s
}

// failures are those of connections so far.
func (s *transferServer) failures() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.errs...)
}

// clients lists who has connected.
func (s *transferServer) clients() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.from)
}

// closeQuietly closes what has served its purpose.
func closeQuietly(c io.Closer) { _ = c.Close() }

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

func serveTransfer(conn *net.TCPConn) error {
	defer closeQuietly(conn)
	var want [8]byte
	if _, err := io.ReadFull(conn, want[:]); err != nil {
		return fmt.Errorf("server, request: %w", err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, conn); err != nil {
		return fmt.Errorf("server, upload: %w", err)
	}
	if _, err := conn.Write(sum.Sum(nil)); err != nil {
		return fmt.Errorf("server, sum: %w", err)
	}
	if _, err := io.Copy(conn, stream(int64(binary.BigEndian.Uint64(want[:])))); err != nil {
		return fmt.Errorf("server, download: %w", err)
	}
	return nil
}

// stream is n bytes that say where they belong: the same for all, and nothing repeats.
func stream(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{7}), n)
}

// streamBytes is the same as a slice.
func streamBytes(n int) []byte {
	b, err := io.ReadAll(stream(int64(n)))
	if err != nil {
		panic(err) // it reads memory
	}
	return b
}

func streamSum(n int64) []byte {
	sum := sha256.New()
	_, _ = io.Copy(sum, stream(n)) // from memory to memory
	return sum.Sum(nil)
}

// transfer is the client of a transferServer: up bytes there, down bytes back, and an
// error if they are not exactly the right ones or the end is not a clean one.
func (n *node) transfer(ctx context.Context, to netip.AddrPort, up, down int64) (local netip.AddrPort, err error) {
	conn, err := n.dial(ctx, to)
	if err != nil {
		return local, err
	}
	return addrPort(conn.LocalAddr()), transferOver(ctx, conn, up, down)
}

// transferOver is transfer over a connection that is there. It is closed.
func transferOver(ctx context.Context, conn *net.TCPConn, up, down int64) error {
	defer closeQuietly(conn)
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint64(nil, uint64(down))); err != nil {
		return err
	}
	if _, err := io.Copy(conn, stream(up)); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	if err := conn.CloseWrite(); err != nil {
		return fmt.Errorf("end of upload: %w", err)
	}
	var sum [sha256.Size]byte
	if _, err := io.ReadFull(conn, sum[:]); err != nil {
		return fmt.Errorf("sum: %w", err)
	}
	if !bytes.Equal(sum[:], streamSum(up)) {
		return errors.New("the upload arrived changed")
	}
	got := sha256.New()
	if size, err := io.Copy(got, conn); err != nil || size != down {
		return fmt.Errorf("download: %d bytes, want %d, then %w", size, down, err)
	}
	if !bytes.Equal(got.Sum(nil), streamSum(down)) {
		return errors.New("the download arrived changed")
	}
	return nil
}

// mustReset reads to the end and wants that to be a reset, after nothing but a part of
// what was sent.
func mustReset(t *testing.T, who string, conn net.Conn, sent []byte) {
	t.Helper()
	got, err := io.ReadAll(conn)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("%s: %d bytes, then %v; want a reset", who, len(got), err)
	}
	if !bytes.HasPrefix(sent, got) {
		t.Errorf("%s: read bytes that were not sent, among %d", who, len(got))
	}
}

// mustRead reads exactly that.
func mustRead(t *testing.T, who string, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("%s: read %q, %v; want %q", who, got[:n], err, want)
	}
}

// mustWrite writes all of it.
func mustWrite(t *testing.T, who string, conn net.Conn, data string) {
	t.Helper()
	if _, err := io.WriteString(conn, data); err != nil {
		t.Fatalf("%s: write: %v", who, err)
	}
}

// mustEnd reads the end of file and nothing before it.
func mustEnd(t *testing.T, who string, conn net.Conn) {
	t.Helper()
	if got, err := io.ReadAll(conn); err != nil || len(got) > 0 {
		t.Fatalf("%s: read %q, %v; want the end of file", who, got, err)
	}
}

// mustReadAll reads exactly that and then the end of file.
func mustReadAll(t *testing.T, conn net.Conn, want []byte) {
	t.Helper()
	got, err := io.ReadAll(conn)
	if err != nil || !bytes.Equal(got, want) {
		t.Fatalf("program read %d bytes, %v; want %d and the end", len(got), err, len(want))
	}
}
