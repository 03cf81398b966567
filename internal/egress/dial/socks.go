package dial

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/moat-sandbox/moat/internal/policy"
)

// What the messages of SOCKS5 are made of (RFC 1928, RFC 1929).
const (
	socksVersion   = 5
	socksConnect   = 1
	socksNoAuth    = 0
	socksPassword  = 2
	socksNoMethod  = 0xff
	socksIPv4      = 1
	socksName      = 3
	socksIPv6      = 4
	passwordAsked  = 1 // version of the sub-negotiation
	passwordPassed = 0
)

// socksReply is what a proxy says instead of connecting.
type socksReply uint8

// The replies that tell something about the destination.
const (
	replyDone            socksReply = 0
	replyNotAllowed      socksReply = 2
	replyNoNetwork       socksReply = 3
	replyNoHost          socksReply = 4
	replyRefused         socksReply = 5
	replyExpired         socksReply = 6
	replyUnknownCommand  socksReply = 7
	replyUnknownAddrType socksReply = 8
)

// Error implements error.
func (r socksReply) Error() string {
	switch r {
	case replyNotAllowed:
		return "does not allow the connection"
	case replyNoNetwork:
		return "has no route to the destination"
	case replyNoHost:
		return "cannot reach the destination"
	case replyRefused:
		return "is refused by the destination"
	case replyExpired:
		return "gets no answer from the destination"
	case replyUnknownCommand, replyUnknownAddrType:
		return "does not understand the request"
	}
	return fmt.Sprintf("fails with code %d", uint8(r))
}

var (
	errNotSOCKS   = errors.New("does not speak SOCKS5")
	errNoMethod   = errors.New("accepts none of the ways to log in that there are")
	errNoPassword = errors.New("asks for a password, and there is none")
	errPassword   = errors.New("does not accept the username and password")
)

// connectSOCKS asks a proxy, on a fresh connection to it, to connect to a name
// or else an address. The connection is the destination's afterwards: nothing
// that belongs to it has been read. Errors have no credentials in them.
func connectSOCKS(ctx context.Context, conn net.Conn, up policy.Upstream, name string, addr netip.AddrPort) error {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // fails only if it is closed
	err := logIn(conn, up)
	if err == nil {
		err = request(conn, name, addr)
	}
	if !stop() && err == nil {
		err = context.Cause(ctx) // the deadline may be set, or be so soon
	}
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return cause
	}
	return err
}

// logIn offers a password only if there is one, and sends it only if asked.
func logIn(conn net.Conn, up policy.Upstream) error {
	offer := []byte{socksVersion, 1, socksNoAuth}
	if up.Username != "" {
		offer = []byte{socksVersion, 2, socksNoAuth, socksPassword}
	}
	if _, err := conn.Write(offer); err != nil {
		return err
	}
	var chosen [2]byte
	if err := readAll(conn, chosen[:]); err != nil {
		return err
	}
	switch {
	case chosen[0] != socksVersion:
		return errNotSOCKS
	case chosen[1] == socksNoAuth:
		return nil
	case chosen[1] == socksNoMethod:
		return errNoMethod
	case chosen[1] != socksPassword:
		return errNotSOCKS // it was not offered
	case up.Username == "":
		return errNoPassword
	}
	return sendPassword(conn, up)
}

func sendPassword(conn net.Conn, up policy.Upstream) error {
	password := up.Password.Reveal()
	if len(up.Username) > 255 || len(password) > 255 {
		return errPassword // does not fit, and a policy has none
	}
	message := append([]byte{passwordAsked, byte(len(up.Username))}, up.Username...)
	message = append(append(message, byte(len(password))), password...)
	if _, err := conn.Write(message); err != nil {
		return err
	}
	var answer [2]byte
	if err := readAll(conn, answer[:]); err != nil {
		return err
	}
	if answer[0] != passwordAsked || answer[1] != passwordPassed {
		return errPassword
	}
	return nil
}

// request asks for the connection and reads the reply to its last byte.
func request(conn net.Conn, name string, addr netip.AddrPort) error {
	message := []byte{socksVersion, socksConnect, 0}
	switch {
	case len(name) > 255:
		return replyUnknownAddrType
	case name != "":
		message = append(append(message, socksName, byte(len(name))), name...)
	case addr.Addr().Is4():
		message = append(append(message, socksIPv4), addr.Addr().AsSlice()...)
	default:
		message = append(append(message, socksIPv6), addr.Addr().AsSlice()...)
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint16(message, addr.Port())); err != nil {
		return err
	}
	var head [4]byte
	if err := readAll(conn, head[:]); err != nil {
		return err
	}
	if head[0] != socksVersion {
		return errNotSOCKS
	}
	if reply := socksReply(head[1]); reply != replyDone {
		return reply
	}
	return skipBound(conn, head[3])
}

// skipBound reads the address that the proxy connects from, which says nothing.
func skipBound(conn net.Conn, kind byte) error {
	size := 0
	switch kind {
	case socksIPv4:
		size = net.IPv4len
	case socksIPv6:
		size = net.IPv6len
	case socksName:
		var length [1]byte
		if err := readAll(conn, length[:]); err != nil {
			return err
		}
		size = int(length[0])
	default:
		return errNotSOCKS
	}
	return readAll(conn, make([]byte, size+2)) // with the port
}

// readAll fills a buffer. That the proxy ends the connection is no regular end.
func readAll(conn net.Conn, buf []byte) error {
	_, err := io.ReadFull(conn, buf)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return errors.New("ends the connection")
	}
	return err
}
