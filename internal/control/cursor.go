package control

import (
	"cmp"
	"encoding/base64"
	"strconv"
	"strings"
	"time"

	"github.com/moat-sandbox/moat/internal/store"
)

// cursor is a place in the order of sandboxes, behind the last one of a page.
// It stays valid when that sandbox is gone.
type cursor struct {
	micros int64 // start, in unix microseconds
	id     string
}

func cursorOf(s store.Sandbox) cursor {
	return cursor{micros: s.StartedAt.UnixMicro(), id: s.ID}
}

// compare orders by start; the id decides between equal ones.
func (c cursor) compare(other cursor) int {
	return cmp.Or(cmp.Compare(c.micros, other.micros), strings.Compare(c.id, other.id))
}

// String is the cursor as a token for clients.
func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.micros, 10) + "." + c.id))
}

// parseCursor takes only what String makes.
func parseCursor(token string) (cursor, error) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(token)
	if err != nil {
		return cursor{}, badRequest("Invalid next token")
	}
	micros, id, _ := strings.Cut(string(raw), ".")
	n, err := strconv.ParseInt(micros, 10, 64)
	c := cursor{micros: n, id: id}
	if short, _ := shortID(id); err != nil || id == "" || short != id || c.String() != token {
		return cursor{}, badRequest("Invalid next token")
	}
	if at := time.UnixMicro(n).Unix(); at < 0 || at > maxUnix {
		return cursor{}, badRequest("Invalid next token")
	}
	return c, nil
}
