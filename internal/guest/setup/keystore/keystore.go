// Package keystore adds certificates to the files in which Java keeps the
// authorities that it trusts.
package keystore

import (
	"bytes"
	"crypto/sha1" //nolint:gosec // what the format has; it guards against accidents only
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf16"

	"software.sslmate.com/src/go-pkcs12"
)

// The form of a JKS file (sun.security.provider.JavaKeyStore): a head, entries,
// and a digest over both and the password. All numbers are big-endian, and texts
// have two bytes of length.
const (
	magic       = 0xfeedfeed
	version     = 2
	trusted     = 2 // the tag of an entry with a certificate and no key
	certificate = "X.509"
	headSize    = 12
	// password is what Java's own stores have. Nobody means to keep them secret.
	password = "changeit"
	salt     = "Mighty Aphrodite"
)

// prefix begins the aliases of entries that Add has made.
const prefix = "moat-extra-ca-"

// Add returns a trust store with certificates, each in DER, instead of those
// that it added before. It reads JKS and PKCS #12, and writes JKS, which every
// Java takes for either.
func Add(store []byte, certificates [][]byte) ([]byte, error) {
	var body bytes.Buffer
	count, err := keep(&body, store)
	if err != nil {
		return nil, err
	}
	for i, der := range certificates {
		writeEntry(&body, prefix+strconv.Itoa(i), der)
	}
	out := binary.BigEndian.AppendUint32(nil, magic)
	out = binary.BigEndian.AppendUint32(out, version)
	out = binary.BigEndian.AppendUint32(out, uint32(count+len(certificates)))
	out = append(out, body.Bytes()...)
	return append(out, digest(out)...), nil
}

// keep writes the entries of a store that Add has not made, and counts them.
func keep(body *bytes.Buffer, store []byte) (count int, err error) {
	if len(store) >= 4 && binary.BigEndian.Uint32(store) == magic {
		return keepJKS(body, store)
	}
	certs, err := pkcs12.DecodeTrustStore(store, "")
	if err != nil {
		certs, err = pkcs12.DecodeTrustStore(store, password)
	}
	if err != nil {
		return 0, fmt.Errorf("neither JKS nor a PKCS #12 trust store: %w", err)
	}
	for i, cert := range certs {
		writeEntry(body, "authority-"+strconv.Itoa(i), cert.Raw)
	}
	return len(certs), nil
}

var errMalformed = errors.New("malformed JKS trust store")

func keepJKS(body *bytes.Buffer, store []byte) (count int, err error) {
	if len(store) < headSize+sha1.Size || binary.BigEndian.Uint32(store[4:]) != version {
		return 0, errMalformed
	}
	entries := binary.BigEndian.Uint32(store[8:])
	rest := store[headSize : len(store)-sha1.Size]
	for range entries {
		size, alias, err := measure(rest)
		if err != nil {
			return 0, err
		}
		if !bytes.HasPrefix(alias, []byte(prefix)) {
			body.Write(rest[:size])
			count++
		}
		rest = rest[size:]
	}
	if len(rest) != 0 {
		return 0, errMalformed
	}
	return count, nil
}

// measure returns the size of the entry that begins here, and its alias.
func measure(raw []byte) (size int, alias []byte, err error) {
	r := reader{raw: raw}
	tag := r.number(4)
	alias = r.take(r.number(2))
	r.take(8) // when it was made
	r.take(r.number(2))
	r.take(r.number(4))
	if r.short || tag != trusted {
		return 0, nil, errMalformed
	}
	return len(raw) - len(r.raw), alias, nil
}

// reader takes bytes as long as there are enough.
type reader struct {
	raw   []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.raw) {
		r.short, r.raw = true, nil
		return nil
	}
	taken := r.raw[:n]
	r.raw = r.raw[n:]
	return taken
}

func (r *reader) number(size int) (n int) {
	for _, b := range r.take(size) {
		n = n<<8 | int(b)
	}
	return n
}

func writeEntry(body *bytes.Buffer, alias string, der []byte) {
	raw := binary.BigEndian.AppendUint32(nil, trusted)
	raw = appendText(raw, alias)
	raw = binary.BigEndian.AppendUint64(raw, uint64(time.Now().UnixMilli()))
	raw = appendText(raw, certificate)
	raw = binary.BigEndian.AppendUint32(raw, uint32(len(der)))
	body.Write(append(raw, der...))
}

// appendText writes a text in ASCII, where Java's form of UTF-8 is the usual one.
func appendText(raw []byte, text string) []byte {
	return append(binary.BigEndian.AppendUint16(raw, uint16(len(text))), text...)
}

// digest is what Java compares when somebody gives the password.
func digest(content []byte) []byte {
	var secret []byte
	for _, unit := range utf16.Encode([]rune(password)) {
		secret = binary.BigEndian.AppendUint16(secret, unit)
	}
	h := sha1.New() //nolint:gosec // see the import
	h.Write(secret)
	h.Write([]byte(salt))
	h.Write(content)
	return h.Sum(nil)
}
