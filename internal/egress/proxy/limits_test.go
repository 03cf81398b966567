package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/egress/proxy"
	"github.com/moat-sandbox/moat/internal/policy"
)

// Attack 12: a ClientHello in pieces is put together; one that never ends is
// not waited for.
func TestAttack12SplitOversizedSlowClientHello(t *testing.T) {
	const deadline = 500 * time.Millisecond
	w, hasty := newWorld(t, proxy.Limits{}), newWorld(t, proxy.Limits{Peek: deadline})
	w.serve(t, "example.com:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	b, slow := w.box(t, 1, "example.com"), hasty.box(t, 1, "example.com")

	t.Run("byte by byte", func(t *testing.T) {
		conn := b.tls(t)
		conn.SetNoDelay(true)
		text := clientHello("example.com")
		for i := range text {
			conn.Write(text[i : i+1])
		}
		conn.CloseWrite()
		if got, err := ending(t, conn); got != string(text) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("in small records", func(t *testing.T) {
		whole := clientHello("example.com")
		var text []byte
		for _, c := range whole[5:] {
			text = append(text, 22, 3, 1, 0, 1, c)
		}
		conn := b.tls(t)
		conn.Write(text)
		conn.CloseWrite()
		if got, err := ending(t, conn); got != string(text) || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	})
	t.Run("oversized", func(t *testing.T) {
		conn := b.tls(t)
		record := append([]byte{22, 3, 1, 0x40, 0}, make([]byte, 1<<14)...)
		copy(record[5:], []byte{1, 1, 0, 0}) // a ClientHello of 64 KiB
		for range 5 {
			conn.Write(record)
			record[5] = 0
		}
		wantAccessDenied(t, conn, "oversized")
	})
	for what, text := range map[string]string{"never finished": string(clientHello("example.com")[:40]), "silent": "", "one byte": "\x16"} {
		t.Run(what, func(t *testing.T) {
			conn := slow.tls(t)
			io.WriteString(conn, text)
			start := time.Now()
			got, err := ending(t, conn)
			if took := time.Since(start); took < deadline/2 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("ended after %v with %q, %v", took, got, err)
			}
			if ends := strings.HasSuffix(got, "\x02\x02\x31"); ends != (len(text) > 5) {
				t.Errorf("got %q", got)
			}
		})
	}
	denied := 0
	for _, r := range append(b.records(t, 3), slow.records(t, 3)...) {
		if r.Verdict == policy.Deny && r.Name == "" && r.Reason != "" {
			denied++
		}
	}
	if denied != 4 {
		t.Errorf("%d refusals recorded, want 4", denied)
	}
}

// The same for requests.
func TestSlowHead(t *testing.T) {
	const deadline = 300 * time.Millisecond
	w := newWorld(t, proxy.Limits{Peek: deadline})
	b := w.box(t, 1, "example.com")
	for text, want := range map[string]string{"": "", "GE": "", "GET / HTTP/1.1\r\nHost: exam": "HTTP/1.1 408"} {
		conn := b.http(t)
		io.WriteString(conn, text)
		if want == "" {
			wantReset(t, conn)
		} else if got, _ := ending(t, conn); !strings.HasPrefix(got, want) {
			t.Errorf("%q: %.60q", text, got)
		}
	}
	for _, r := range b.records(t, 3) {
		if r.Verdict != policy.Deny || r.Duration < deadline/2 {
			t.Errorf("record %+v", r)
		}
	}
}

// Attack 27: what one sandbox opens, or leaves open, takes nothing from the
// others. What is beyond the limits costs a reset and few records.
func TestAttack27Exhaustion(t *testing.T) {
	w := newWorld(t, proxy.Limits{Connections: 20, Undecided: 5})
	w.site(t, "example.com", hello)
	w.serve(t, "example.com:443", func(conn *net.TCPConn) { io.Copy(conn, conn) })
	greedy, neighbour := w.box(t, 1, "example.com"), w.box(t, 2, "example.com")

	t.Run("slow peeks", func(t *testing.T) {
		var open []*net.TCPConn
		for range 5 {
			conn := greedy.tls(t)
			conn.Write([]byte{22})
			open = append(open, conn)
		}
		greedy.wantNoEntry(t, w.listen443)
		greedy.wantNoEntry(t, w.listen80)
		if status, _ := get(t, neighbour.client(t), "http://example.com/"); status != 200 {
			t.Errorf("the neighbour gets %d", status)
		}
		for _, conn := range open {
			conn.Close()
		}
		eventually(t, "connections that have ended still count", func() bool {
			conn, err := greedy.connect(t, w.listen443)
			if err != nil {
				return false
			}
			conn.Write(clientHello("example.com"))
			conn.CloseWrite()
			got, _ := ending(t, conn)
			return len(got) > 10
		})
	})
	t.Run("many connections", func(t *testing.T) {
		text := string(clientHello("example.com"))
		for i := range 20 {
			conn := greedy.tls(t)
			io.WriteString(conn, text)
			if got, err := io.ReadAll(io.LimitReader(conn, int64(len(text)))); string(got) != text {
				t.Fatalf("connection %d: %q, %v", i, got, err)
			}
		}
		const flood = 200
		for range flood {
			greedy.wantNoEntry(t, w.listen443)
		}
		if status, _ := get(t, neighbour.client(t), "http://example.com/"); status != 200 {
			t.Errorf("the neighbour gets %d", status)
		}
	})
	limited := 0
	for _, r := range w.log.Query(audit.Filter{Sandbox: greedy.id, Limit: audit.MaxLimit}).Records {
		if r.Rule == "limit" {
			limited++
			if r.Verdict != policy.Deny || !strings.Contains(r.Reason, "too many") || r.Time.IsZero() {
				t.Errorf("record %+v", r)
			}
		}
	}
	if limited < 1 || limited > 10 {
		t.Errorf("%d records about the limits", limited)
	}
}

// What comes from an address that is nobody's is reset.
func TestUnknownSource(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	b := w.box(t, 1, "*")
	w.tenants.remove(b.addr)
	b.wantNoEntry(t, w.listen443)
	b.wantNoEntry(t, w.listen80)
	wantDials(t, w)
}

// Many sandboxes at once, each with its own policy: nobody gets what only
// another one may.
func TestManySandboxesAtOnce(t *testing.T) {
	w := newWorld(t, proxy.Limits{})
	const boxes, requests = 8, 20
	for i := range boxes {
		w.site(t, fmt.Sprintf("site%d.example", i), hello)
	}
	for i := range boxes {
		t.Run("", func(t *testing.T) {
			t.Parallel()
			b := w.box(t, byte(i+1), fmt.Sprintf("site%d.example", i))
			c := b.client(t)
			for n := range requests {
				target := (i + n) % boxes
				status, _ := get(t, c, fmt.Sprintf("http://site%d.example/", target))
				if want := map[bool]int{true: 200, false: 403}[target == i]; status != want {
					t.Errorf("box %d at site %d: %d", i, target, status)
				}
			}
		})
	}
}
