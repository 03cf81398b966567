package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"time"

	wire "github.com/miekg/dns"

	"github.com/moat-sandbox/moat/internal/egress"
)

const (
	// tryTimeout bounds one exchange with one server.
	tryTimeout = 1500 * time.Millisecond
	// rounds is how often each server is tried for one question.
	rounds = 2
	// udpSize is the largest datagram we ask for and send: it is not
	// fragmented on any common path (DNS flag day 2020).
	udpSize = 1232
	// maxStrays is how many datagrams that do not answer the question we read
	// before we believe that somebody guesses, and ask over TCP.
	maxStrays = 4
)

var errStrays = errors.New("too many datagrams that do not answer the question")

// upstream asks name servers.
type upstream struct {
	servers func() []netip.AddrPort // at least one
	dial    func(ctx context.Context, network, address string) (net.Conn, error)
	log     *slog.Logger

	good atomic.Uint32 // index of the server that answered last
}

// ask returns the first usable reply, beginning with the server that answered
// last time.
func (u *upstream) ask(ctx context.Context, q question) (*wire.Msg, error) {
	servers := u.servers()
	first := int(u.good.Load()) % len(servers)
	var failed error
	for try := range len(servers) * rounds {
		i := (first + try) % len(servers)
		reply, err := u.exchange(ctx, servers[i], q)
		if err == nil {
			u.good.Store(uint32(i))
			return reply, nil
		}
		u.log.Debug("name server failed", "server", servers[i], "type", wire.Type(q.qtype), "error", err)
		failed = err
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("%w: %w", egress.ErrNoAnswer, failed)
}

// exchange asks one server, over UDP and if need be over TCP.
func (u *upstream) exchange(ctx context.Context, server netip.AddrPort, q question) (*wire.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, tryTimeout)
	defer cancel()
	reply, err := u.exchangeOver(ctx, "udp", server, q)
	if errors.Is(err, errStrays) || err == nil && reply.Truncated {
		reply, err = u.exchangeOver(ctx, "tcp", server, q)
	}
	switch {
	case err != nil:
		return nil, err
	case reply.Truncated:
		return nil, errors.New("the answer is truncated over TCP")
	case reply.Rcode != wire.RcodeSuccess && reply.Rcode != wire.RcodeNameError:
		return nil, fmt.Errorf("the server answers %s", rcodeName(reply.Rcode))
	}
	return reply, nil
}

func rcodeName(rcode int) string {
	if name, ok := wire.RcodeToString[rcode]; ok {
		return name
	}
	return fmt.Sprintf("code %d", rcode)
}

// exchangeOver opens a socket of its own, so that every question has a random
// port besides its random id, and the kernel drops what others send.
func (u *upstream) exchangeOver(ctx context.Context, network string, server netip.AddrPort, q question) (*wire.Msg, error) {
	query := new(wire.Msg).SetQuestion(wire.Fqdn(q.name.String()), q.qtype)
	query.SetEdns0(udpSize, false)
	packed, err := query.Pack()
	if err != nil {
		return nil, fmt.Errorf("pack the question: %w", err)
	}
	conn, err := u.dial(ctx, network, server.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	// A deadline in the past ends every read and write.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if network == "tcp" {
		return overTCP(conn, query, packed)
	}
	return overUDP(conn, query, packed)
}

func overUDP(conn net.Conn, query *wire.Msg, packed []byte) (*wire.Msg, error) {
	if _, err := conn.Write(packed); err != nil {
		return nil, err
	}
	buf := make([]byte, 2*udpSize) // for servers that ignore the limit
	for range maxStrays {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if n < 2 || binary.BigEndian.Uint16(buf) != query.Id {
			continue
		}
		var reply wire.Msg
		// Some servers cut what is too long in the middle of a record.
		if err := reply.Unpack(buf[:n]); err != nil && !reply.Truncated {
			return nil, fmt.Errorf("parse the answer: %w", err)
		}
		if answers(query, &reply) {
			return &reply, nil
		}
	}
	return nil, errStrays
}

func overTCP(conn net.Conn, query *wire.Msg, packed []byte) (*wire.Msg, error) {
	if err := writeMessage(conn, packed); err != nil {
		return nil, err
	}
	buf, err := readMessage(conn, wire.MaxMsgSize)
	if err != nil {
		return nil, err
	}
	var reply wire.Msg
	if err := reply.Unpack(buf); err != nil {
		return nil, fmt.Errorf("parse the answer: %w", err)
	}
	if !answers(query, &reply) {
		return nil, errors.New("the answer is for another question")
	}
	return &reply, nil
}

// answers reports whether a message is the reply to our query. Servers that
// do not understand a query may leave the question out.
func answers(query, reply *wire.Msg) bool {
	if !reply.Response || reply.Id != query.Id || reply.Opcode != wire.OpcodeQuery {
		return false
	}
	if len(reply.Question) == 0 {
		return reply.Rcode != wire.RcodeSuccess && reply.Rcode != wire.RcodeNameError
	}
	asked, about := query.Question[0], reply.Question[0]
	return len(reply.Question) == 1 && about.Qtype == asked.Qtype && about.Qclass == asked.Qclass &&
		strings.EqualFold(about.Name, asked.Name)
}

// writeMessage writes a message in the form it has on streams.
func writeMessage(w io.Writer, msg []byte) error {
	framed := make([]byte, 2, 2+len(msg))
	binary.BigEndian.PutUint16(framed, uint16(len(msg)))
	_, err := w.Write(append(framed, msg...))
	return err
}

// readMessage reads a message of at most limit bytes from a stream.
func readMessage(r io.Reader, limit int) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(length[:]))
	if n > limit {
		return nil, fmt.Errorf("message of %d bytes, at most %d are read", n, limit)
	}
	msg := make([]byte, n)
	_, err := io.ReadFull(r, msg)
	return msg, err
}
