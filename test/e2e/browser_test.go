package e2e

import (
	"slices"
	"strings"
	"testing"

	"github.com/moat-sandbox/moat/internal/lab"
)

// trustInChromium gives Chromium, which keeps a list of its own, what all else in
// the sandbox trusts.
const trustInChromium = `csplit -s -z -f /tmp/ca- /etc/ssl/certs/moat-extra-ca.pem '/BEGIN CERT/' '{*}'
mkdir -p ~/.pki/nssdb && certutil -d sql:$HOME/.pki/nssdb -N --empty-password &&
for f in /tmp/ca-*; do certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n $f -i $f || exit; done`

// Chromium asks over HTTP/2 and opens its WebSocket beside that, over HTTP/1.1:
// nobody has told it that it could be otherwise. Both get the header.
func TestBrowserInSandbox(t *testing.T) {
	s := withKey(t)
	box := s.Create(t, keyed())
	box.Upload(t, "testdata/page.html", "page.html")
	box.MustRun(t, trustInChromium)
	box.Start(t, "/usr/lib/chromium/chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run"+
		" --disable-background-networking --disable-component-update --disable-sync --remote-debugging-port=9222 file://$HOME/page.html")
	last := func() lab.Request {
		seen := s.Lab.Requests()
		return seen[len(seen)-1]
	}
	s.Wait("the page tells what came of it", func() bool { return len(s.Lab.Requests()) > 0 && strings.HasPrefix(last().Path, "/?told=") })
	var arrived []string
	for _, r := range s.Lab.Requests() {
		expectKey(t, "Chromium", "example.com", r)
		arrived = append(arrived, r.Proto+" "+r.Path)
	}
	if want := []string{"HTTP/2.0 /headers", "HTTP/1.1 /ws", "HTTP/2.0 /?told=hello"}; !slices.Equal(arrived, want) {
		t.Errorf("arrived: %q, want %q", arrived, want)
	}
}
