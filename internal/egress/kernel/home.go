package kernel

import (
	"fmt"
	"math/big"
	"strings"

	"github.com/google/nftables/expr"
)

// PublicNames describes the hosts of public URLs closely enough to find DNS
// questions for them in packets: one label of a length from Shortest to Longest,
// in bytes, and the name that it is below. The zero value describes none.
type PublicNames struct {
	Below             string
	Shortest, Longest int
}

func (p PublicNames) check() error {
	if p == (PublicNames{}) {
		return nil
	}
	if p.Shortest < 1 || p.Longest > 63 || p.Shortest > p.Longest {
		return fmt.Errorf("public names: labels of %d to %d bytes", p.Shortest, p.Longest)
	}
	for label := range strings.SplitSeq(p.Below, ".") {
		if label == "" || len(label) > 63 {
			return fmt.Errorf("public names: %q is not a domain name", p.Below)
		}
	}
	return nil
}

// chainDirect is where flows go that are not redirected but for one kind:
// questions for public URLs, to whatever name server, are answered by our
// resolver. Name servers elsewhere would say where these are for those outside. It
// is for packets whose destination the policy allows.
const chainDirect = "direct"

func directChain(p PublicNames) chain {
	c := chain{name: chainDirect}
	if p.Below == "" {
		return c
	}
	for length := p.Shortest; length <= p.Longest; length++ {
		c.rules = append(c.rules, rule{udpTo(dnsPort), questionFor(length, p.Below), goTo("to_resolver")})
	}
	return c
}

// questionFor matches a DNS question over UDP for a name of one label of that
// length below another name. Case makes no difference.
func questionFor(label int, below string) statement {
	const udpHeader, dnsHeader = 8, 12
	at := uint32(udpHeader + dnsHeader)
	var texts []string
	var exprs []expr.Any
	match := func(data, bits []byte) {
		texts = append(texts, rawText(at, data, bits))
		exprs = append(exprs, payload(expr.PayloadBaseTransportHeader, at, uint32(len(data))))
		if bits != nil {
			exprs = append(exprs, mask(bits))
		}
		exprs = append(exprs, equal(data))
		at += uint32(len(data))
	}
	match([]byte{byte(label)}, nil)
	at += uint32(label)
	data, bits := wireName(below)
	for len(data) > 0 {
		n := min(len(data), registerSize)
		match(data[:n], bits[:n])
		data, bits = data[n:], bits[n:]
	}
	return part(strings.Join(texts, " "), exprs...)
}

// registerSize is how many bytes are compared at a time.
const registerSize = 16

// wireName writes a name as messages have it, in upper case, and which bits of it
// are compared: all but that which tells the cases of a letter apart.
func wireName(name string) (data, bits []byte) {
	const caseBit = 'a' - 'A'
	for label := range strings.SplitSeq(strings.ToLower(name), ".") {
		data, bits = append(data, byte(len(label))), append(bits, 0xff)
		for _, c := range []byte(label) {
			if 'a' <= c && c <= 'z' {
				data, bits = append(data, c-caseBit), append(bits, 0xff-caseBit)
			} else {
				data, bits = append(data, c), append(bits, 0xff)
			}
		}
	}
	return append(data, 0), append(bits, 0xff)
}

// rawText is how nft shows that bytes of a packet are compared.
func rawText(at uint32, data, bits []byte) string {
	load, value := fmt.Sprintf("@th,%d,%d", at*8, len(data)*8), new(big.Int).SetBytes(data)
	if bits == nil {
		return fmt.Sprintf("%s %#x", load, value)
	}
	return fmt.Sprintf("%s & %#x == %#x", load, new(big.Int).SetBytes(bits), value)
}
