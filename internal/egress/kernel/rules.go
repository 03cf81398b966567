package kernel

import (
	"errors"
	"fmt"
	"sync"

	"github.com/google/nftables/userdata"
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

	mu sync.Mutex // one request at a time
	fd int
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
	err = unix.Bind(fd, kernelSide())
	if err == nil { // error replies need not repeat the message
		err = unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1)
	}
	if err == nil {
		err = r.probe()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open nftables socket: %w", err), r.close())
	}
	return r, nil
}

func (r *rules) close() error { return unix.Close(r.fd) }

func kernelSide() *unix.SockaddrNetlink { return &unix.SockaddrNetlink{Family: unix.AF_NETLINK} }

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
	if t.empty() {
		return nil
	}
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
	if err := unix.Sendto(r.fd, batch, 0, kernelSide()); err != nil {
		return fmt.Errorf("send %d bytes of rules: %w", len(batch), err)
	}
	var refused error
	confirmed := false
	err = r.receive(unix.MSG_DONTWAIT, func(m message) bool {
		switch errno := m.errno(); {
		case m.kind != unix.NLMSG_ERROR || m.seq >= len(t.what):
		case errno == 0:
			confirmed = true
		case refused == nil: // the first is the cause of the others
			refused = fmt.Errorf("%s: %w", t.what[m.seq], errno)
		}
		return true
	})
	switch {
	case refused != nil:
		return refused
	case !errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("read the kernel's reply: %w", err)
	case !confirmed:
		return errors.New("the kernel did not confirm the rules")
	}
	return nil
}

// receive hands over messages for as long as more are wanted. It ends with nil
// when they are not, and with EAGAIN if flags forbid to wait and there is none.
func (r *rules) receive(flags int, each func(message) (more bool)) error {
	buf := make([]byte, 64<<10)
	var lost error
	for {
		n, _, err := unix.Recvfrom(r.fd, buf, flags)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOBUFS): // more than fit; the others are still to be read
			lost = err
			continue
		case err != nil && lost != nil:
			return lost
		case err != nil:
			return err
		}
		if more, err := eachMessage(buf[:n], each); err != nil || !more {
			return err
		}
	}
}

// comments reads the comment of each rule of a chain.
func (r *rules) comments(family byte, table, chain string) ([]string, error) {
	a := str(nil, unix.NFTA_RULE_TABLE, table)
	a = str(a, unix.NFTA_RULE_CHAIN, chain)
	request := appendMessage(nil, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETRULE, unix.NLM_F_DUMP, 0, family, 0, a)
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := unix.Sendto(r.fd, request, 0, kernelSide()); err != nil {
		return nil, fmt.Errorf("ask for rules: %w", err)
	}
	var found []string
	var refused error
	err := r.receive(0, func(m message) bool {
		switch m.kind {
		case unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWRULE:
			found = append(found, ruleComment(m.body))
			return true
		case unix.NLMSG_ERROR:
			refused = m.errno()
		}
		return false // an error, or the end of the list
	})
	if err := errors.Join(refused, err); err != nil {
		return nil, fmt.Errorf("read rules: %w", err)
	}
	return found, nil
}

func ruleComment(body []byte) string {
	for kind, value := range attrs(body[min(genmsgLen, len(body)):]) {
		if kind == unix.NFTA_RULE_USERDATA {
			comment, _ := userdata.GetString(value, userdata.TypeComment)
			return comment
		}
	}
	return ""
}
