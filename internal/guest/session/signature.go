package session

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Operation is what a signed URL allows with its path.
type Operation string

// The operations that URLs can be signed for.
const (
	Read  Operation = "read"
	Write Operation = "write"
)

// The texts of these errors are part of the protocol.
var (
	errHeaderMismatch   = errors.New("access token present in header but does not match")
	errMissingSignature = errors.New("missing signature query parameter")
	errInvalidSignature = errors.New("invalid signature")
	errExpiredSignature = errors.New("signature is already expired")
)

// Verify decides whether a request for a file may proceed: with the token in
// its header or, when it has no such header, with a signature in its query. A
// wrong header is refused even beside a good signature.
func (s *Settings) Verify(header string, query url.Values, op Operation, now time.Time) error {
	if s.Open() {
		return nil
	}
	if header != "" {
		if !s.Authorized(header) {
			return errHeaderMismatch
		}
		return nil
	}
	if !query.Has("signature") {
		return errMissingSignature
	}
	parts := []string{query.Get("path"), string(op), query.Get("username"), *s.token.p}
	expires := query.Has("signature_expiration")
	var until int64
	if expires {
		var err error
		if until, err = strconv.ParseInt(query.Get("signature_expiration"), 10, 64); err != nil {
			return errInvalidSignature
		}
		parts = append(parts, strconv.FormatInt(until, 10))
	}
	if !same(sign(parts), query.Get("signature")) {
		return errInvalidSignature
	}
	if expires && until < now.Unix() {
		return errExpiredSignature
	}
	return nil
}

// sign is version 1 of the signature. Colons join the parts, so a path that has
// colons could be read in two ways. Only the last part, the token or the time
// after it, is beyond the caller; the other reading would need a user whose
// name has a colon, and users files cannot hold one.
func sign(parts []string) string {
	sum := sha256.Sum256([]byte(strings.Join(parts, ":")))
	return "v1_" + base64.RawStdEncoding.EncodeToString(sum[:])
}
