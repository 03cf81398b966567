package dns

import (
	"encoding/binary"
	"strings"

	wire "github.com/miekg/dns"
)

const (
	headerSize = 12
	// maxQuery is the longest message that is read from a sandbox: a question
	// with options is far smaller.
	maxQuery = 4096
	// maxText bounds the explanation in a reply, so that it fits into the
	// smallest datagram together with the longest name.
	maxText = 160
)

// message is what a sandbox sent, as far as a reply depends on it.
type message struct {
	id       uint16
	opcode   int
	recurse  bool
	question []wire.Question // one, or none if it could not be read
	edns     bool
	size     int // the largest datagram the sandbox takes
}

// problem is why no policy needs to be asked about a message. The zero value
// stands for none.
type problem struct {
	rcode int
	why   string
}

// parseMessage reads a message. It returns nil for what must not be replied to
// at all: something without a header, or a reply. Nothing of the message is
// ever sent on; who asks upstream makes a message of his own.
func parseMessage(packet []byte) (*message, problem) {
	if len(packet) < headerSize || packet[2]&0x80 != 0 {
		return nil, problem{}
	}
	count := func(section int) uint16 { return binary.BigEndian.Uint16(packet[4+2*section:]) }
	m := &message{
		id:      binary.BigEndian.Uint16(packet),
		opcode:  int(packet[2]>>3) & 15,
		recurse: packet[2]&1 != 0,
		size:    wire.MinMsgSize,
	}
	switch {
	case m.opcode != wire.OpcodeQuery:
		return m, problem{wire.RcodeNotImplemented, "only queries are answered"}
	case count(0) != 1:
		return m, problem{wire.RcodeFormatError, "a query has one question"}
	case count(1) != 0 || count(2) != 0 || count(3) > 1:
		return m, problem{wire.RcodeFormatError, "a query has no records beside one OPT"}
	}
	var parsed wire.Msg
	if err := parsed.Unpack(packet); err != nil || len(parsed.Question) != 1 {
		return m, problem{wire.RcodeFormatError, "malformed message"}
	}
	m.question = parsed.Question
	if count(3) == 1 {
		opt, ok := optOf(parsed.Extra)
		if !ok {
			return m, problem{wire.RcodeFormatError, "a query has no records beside one OPT"}
		}
		m.edns = true
		m.size = min(max(int(opt.UDPSize()), wire.MinMsgSize), udpSize)
		if opt.Version() != 0 {
			return m, problem{wire.RcodeBadVers, "only version 0 of EDNS is spoken"}
		}
	}
	return m, judgeQuestion(parsed.Question[0])
}

func optOf(extra []wire.RR) (*wire.OPT, bool) {
	if len(extra) != 1 {
		return nil, false
	}
	opt, ok := extra[0].(*wire.OPT)
	return opt, ok && opt.Hdr.Name == "."
}

// judgeQuestion refuses what is not about the ordinary records of a name.
func judgeQuestion(q wire.Question) problem {
	// Types from 128 on ask for something else than records of that type:
	// zone transfers, ANY, signatures of transactions (RFC 6895, section 3.1).
	const firstMeta, lastMeta = 128, 255
	switch {
	case q.Name == ".":
		return problem{wire.RcodeRefused, "the root is not answered for"}
	case q.Qclass != wire.ClassINET:
		return problem{wire.RcodeRefused, "only class IN is answered"}
	case q.Qtype == wire.TypeNone, q.Qtype == wire.TypeOPT, q.Qtype >= firstMeta && q.Qtype <= lastMeta:
		return problem{wire.RcodeRefused, "this type of query is not answered"}
	}
	return problem{}
}

// reply begins the reply to the message.
func (m *message) reply(rcode int) *wire.Msg {
	reply := &wire.Msg{
		MsgHdr: wire.MsgHdr{
			Id:                 m.id,
			Response:           true,
			Opcode:             m.opcode,
			RecursionDesired:   m.recurse,
			RecursionAvailable: true,
			Rcode:              rcode,
		},
		Question: m.question,
	}
	if m.edns {
		reply.SetEdns0(udpSize, false)
	}
	return reply
}

// explain says why a reply is as it is (RFC 8914), to those who understand it.
func explain(reply *wire.Msg, code uint16, text string) {
	opt := reply.IsEdns0()
	if opt == nil {
		return
	}
	if len(text) > maxText {
		text = strings.ToValidUTF8(text[:maxText], "")
	}
	opt.Option = append(opt.Option, &wire.EDNS0_EDE{InfoCode: code, ExtraText: text})
}

// pack returns a reply as bytes, at most limit of them. What cannot be packed
// becomes a failure.
func (m *message) pack(reply *wire.Msg, limit int) []byte {
	reply.Truncate(limit)
	packed, err := reply.Pack()
	if err != nil {
		packed, err = m.reply(wire.RcodeServerFailure).Pack()
	}
	if err != nil {
		return nil
	}
	return packed
}
