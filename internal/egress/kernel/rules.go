package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// rules is the connection to the kernel's nftables.
//
// Where the kernel can do it (6.9 and later) our tables belong to this socket
// for as long as it is open: no other program, and no "nft flush ruleset" of a
// firewall being reloaded, can take them away under running sandboxes. When
// the socket closes, the tables stay.
type rules struct {
	places [2]string // names that our tables can have
	table  string    // the one they have
	flags  uint32    // of our tables

	mu   sync.Mutex // one request at a time
	fd   int
	read *nftables.Conn // for reading back; kept open as the tracker's socket is
}

// Table flags, from linux/netfilter/nf_tables.h.
const (
	tableOwned   = 0x2
	tablePersist = 0x4
)

func openRules(table string) (*rules, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nftables socket: %w", err)
	}
	r := &rules{places: [2]string{table, table + "_2"}, table: table, flags: tableOwned | tablePersist, fd: fd}
	err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	if err == nil { // error replies need not repeat the message
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err == nil {
		r.read, err = nftables.New(nftables.AsLasting())
	}
	if err == nil {
		err = r.probe()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables socket: %w", err), r.close())
	}
	return r, nil
}

func (r *rules) close() error {
	err := unix.Close(r.fd)
	if r.read != nil {
		err = errors.Join(err, r.read.CloseLasting())
	}
	return err
}

// probe finds out whether tables can be owned, with one that never comes into
// being because it goes in the same transaction.
func (r *rules) probe() error {
	t := newTransaction()
	t.addTable(inetFamily, r.table+"_probe", r.flags)
	t.deleteTable(inetFamily, r.table+"_probe")
	err := r.commit(t)
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL) {
		r.flags = 0
		return nil
	}
	return err
}

// commit makes all changes of a transaction or, on error, none.
func (r *rules) commit(t *transaction) error {
	batch, err := t.bytes()
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := unix.SetsockoptInt(r.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, len(batch)+4096); err != nil {
		return fmt.Errorf("make room for %d bytes of rules: %w", len(batch), err)
	}
	// The kernel works while we send: once sending returns, every reply is there.
	if err := unix.Sendto(r.fd, batch, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send %d bytes of rules: %w", len(batch), err)
	}
	return r.replies(t)
}

// replies reads what the kernel had to say: one error for each change it
// refused, or the confirmation of the last.
func (r *rules) replies(t *transaction) error {
	var refused error
	confirmed := false
	buf := make([]byte, 64<<10)
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && refused == nil && !confirmed:
			return errors.New("the kernel did not confirm the rules")
		case errors.Is(err, unix.EAGAIN):
			return refused
		case errors.Is(err, unix.ENOBUFS): // more errors than fit; read those that did
			refused = errors.Join(refused, errors.New("replies of the kernel were lost"))
			continue
		case err != nil:
			return errors.Join(refused, fmt.Errorf("read the kernel's reply: %w", err))
		}
		for msg := buf[:n]; len(msg) >= headerLen+4; {
			length := int(binary.NativeEndian.Uint32(msg))
			kind, seq := binary.NativeEndian.Uint16(msg[4:]), int(binary.NativeEndian.Uint32(msg[8:]))
			errno := unix.Errno(-int32(binary.NativeEndian.Uint32(msg[headerLen:])))
			switch {
			case kind != unix.NLMSG_ERROR || seq >= len(t.what):
			case errno != 0 && refused == nil: // the first is the cause of the others
				refused = fmt.Errorf("%s: %w", t.what[seq], errno)
			case errno == 0:
				confirmed = true
			}
			msg = msg[min(nlAlign(length), len(msg)):]
		}
	}
}

func nlAlign(n int) int { return max((n+unix.NLMSG_ALIGNTO-1)&^(unix.NLMSG_ALIGNTO-1), headerLen) }
