package intercept

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// An intermediate is signed anew when a leaf would outlive it.
	intermediateLife = 30 * 24 * time.Hour
	// leafLife counts from now on. A leaf is made anew when it has less than
	// skew left: clocks may be ahead.
	leafLife = 72 * time.Hour
	// maxHosts bounds an intermediate, which clients are sent with every leaf. A
	// sandbox with more hosts has more intermediates.
	maxHosts = 32
	// maxCommonName is how long a subject's name may be (RFC 5280, appendix A.1).
	maxCommonName = 64
)

// everything stands for all names. No constraint can say that in a way that
// all clients understand, so a name that nothing narrower covers gets an
// intermediate of its own.
const everything = "*"

// issuer signs for one sandbox and one set of hosts.
type issuer struct {
	root  *Root
	hosts []string

	mu            sync.Mutex
	intermediates map[int]*intermediate // by the number of the group of hosts
	leafs         map[string]*leaf      // by name
}

// intermediate is an authority for some of the hosts.
type intermediate struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	// leafKey is that of all its leafs: who gets at one gets at all that is here.
	leafKey *ecdsa.PrivateKey
}

// leaf is the certificate for a name, as TLS wants it.
type leaf struct {
	expires time.Time
	h1, h2  *tls.Config
}

// covering returns the host that a name is, or the narrowest pattern for it.
func covering(hosts []string, name string) (host string, ok bool) {
	for _, h := range hosts {
		below, wild := strings.CutPrefix(h, everything)
		switch {
		case h == name && !wild:
			return h, true
		case wild && strings.HasSuffix(name, below) && len(name) > len(below) && len(h) > len(host):
			host, ok = h, true
		}
	}
	return host, ok
}

// leaf returns the certificate for a name that a host covers.
func (i *issuer) leaf(host, name string, now time.Time) (*leaf, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if found := i.leafs[name]; found != nil && now.Add(skew).Before(found.expires) {
		return found, nil
	}
	by, err := i.intermediate(host, name, now)
	if err != nil {
		return nil, err
	}
	made, err := by.sign(name, now)
	if err != nil {
		return nil, err
	}
	makeRoom(i.leafs, maxLeafs)
	i.leafs[name] = made
	return made, nil
}

// intermediate returns the authority whose constraint has the host in it. The
// caller holds mu.
func (i *issuer) intermediate(host, name string, now time.Time) (*intermediate, error) {
	if host == everything {
		return i.root.intermediate([]string{name}, now)
	}
	group := slices.Index(i.hosts, host) / maxHosts
	if found := i.intermediates[group]; found != nil && now.Add(leafLife).Before(found.cert.NotAfter) {
		return found, nil
	}
	made, err := i.root.intermediate(i.hosts[group*maxHosts:min((group+1)*maxHosts, len(i.hosts))], now)
	if err == nil {
		i.intermediates[group] = made
	}
	return made, err
}

// intermediate makes an authority that can vouch for some hosts and, of these,
// for servers only. It can vouch for no address at all, and for no further
// authority.
func (r *Root) intermediate(hosts []string, now time.Time) (*intermediate, error) {
	serial := newSerial()
	template := &x509.Certificate{
		SerialNumber:                serial,
		Subject:                     pkix.Name{Organization: []string{"moat"}, CommonName: "moat egress CA of one sandbox, " + serial.Text(36)[:12]},
		NotBefore:                   now.Add(-skew),
		NotAfter:                    earlier(now.Add(intermediateLife), r.cert.NotAfter),
		IsCA:                        true,
		BasicConstraintsValid:       true,
		MaxPathLenZero:              true,
		KeyUsage:                    x509.KeyUsageCertSign,
		ExtKeyUsage:                 []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		PermittedDNSDomainsCritical: true,
		PermittedDNSDomains:         constraints(hosts),
		ExcludedIPRanges:            []*net.IPNet{{IP: make(net.IP, net.IPv4len), Mask: make(net.IPMask, net.IPv4len)}, {IP: make(net.IP, net.IPv6len), Mask: make(net.IPMask, net.IPv6len)}},
	}
	key, err := newKey()
	if err != nil {
		return nil, err
	}
	leafKey, err := newKey()
	if err != nil {
		return nil, err
	}
	cert, err := sign(template, r.cert, key, r.key)
	if err != nil {
		return nil, err
	}
	return &intermediate{cert: cert, key: key, leafKey: leafKey}, nil
}

// constraints are hosts as certificates have them: a name stands for those
// below it as well there, one that begins with a dot for those only.
func constraints(hosts []string) []string {
	names := make([]string, 0, len(hosts))
	for _, h := range hosts {
		if h != everything {
			names = append(names, strings.TrimPrefix(h, everything))
		}
	}
	return names
}

// sign makes the certificate for a name.
func (i *intermediate) sign(name string, now time.Time) (*leaf, error) {
	template := &x509.Certificate{
		SerialNumber: newSerial(),
		NotBefore:    now.Add(-skew),
		NotAfter:     earlier(now.Add(leafLife), i.cert.NotAfter),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{name},
	}
	if len(name) <= maxCommonName {
		template.Subject.CommonName = name // without it some clients show nothing
	}
	cert, err := sign(template, i.cert, i.leafKey, i.key)
	if err != nil {
		return nil, err
	}
	chain := tls.Certificate{Certificate: [][]byte{cert.Raw, i.cert.Raw}, PrivateKey: i.leafKey, Leaf: cert}
	return &leaf{expires: cert.NotAfter, h1: serverConfig(chain, "http/1.1"), h2: serverConfig(chain, "h2")}, nil
}

func serverConfig(chain tls.Certificate, protocol string) *tls.Config {
	// Named, because otherwise they would be those of the configuration that
	// chooses this one, and every connection has one of its own.
	var tickets [32]byte
	_, _ = rand.Read(tickets[:]) // documented never to fail
	c := &tls.Config{
		Certificates: []tls.Certificate{chain},
		NextProtos:   []string{protocol},
		MinVersion:   tls.VersionTLS12,
		// This connection never leaves the node, so nobody can keep it to read it
		// with a later computer: the cheaper key exchanges do.
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
	}
	c.SetSessionTicketKeys([][32]byte{tickets})
	return c
}

// config returns the configuration for a protocol; HTTP/1.1 unless it is "h2".
func (l *leaf) config(protocol string) *tls.Config {
	if protocol == "h2" {
		return l.h2
	}
	return l.h1
}

func earlier(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}
