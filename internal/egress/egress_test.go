package egress_test

import (
	"errors"
	"net/netip"
	"testing"

	"github.com/moat-sandbox/moat/internal/egress"
	"github.com/moat-sandbox/moat/internal/policy"
)

func TestJudge(t *testing.T) {
	never, err := policy.NewNever(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		never *policy.Never
		addr  netip.Addr
		want  string // empty if it may be contacted
	}{
		{never, netip.MustParseAddr("1.1.1.1"), ""},
		{never, netip.MustParseAddr("2606:4700:4700::1111"), ""},
		{never, netip.MustParseAddr("10.0.0.1"), "10.0.0.1 is never reachable: private network"},
		{never, netip.MustParseAddr("::ffff:1.1.1.1"), "::ffff:1.1.1.1 is never reachable: IPv4-mapped address"},
		{never, netip.MustParseAddr("2606::1%eth0"), "2606::1%eth0 is never reachable: an address with a zone is not routable"},
		{never, netip.Addr{}, "invalid IP is never reachable: not an address"},
		{nil, netip.MustParseAddr("1.1.1.1"), "1.1.1.1 is never reachable: there is no table of reachable addresses"},
	} {
		err := egress.Judge(test.never, test.addr)
		var forbidden *egress.ForbiddenError
		if (err == nil) != (test.want == "") || err != nil && (!errors.As(err, &forbidden) || err.Error() != test.want) {
			t.Errorf("%v: got %v, want %s", test.addr, err, test.want)
		}
	}
}
