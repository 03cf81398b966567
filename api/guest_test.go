package api_test

import (
	"reflect"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

func TestGuestSetupComesBack(t *testing.T) {
	for _, want := range []api.GuestSetup{
		{},
		{Hostname: "moat", Nameservers: []string{"8.8.8.8"}, CABundle: "ONE\nTWO\n", Roots: "THREE\n\nFOUR\n"},
	} {
		raw, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got, err := api.DecodeGuestSetup(raw); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v comes back as %+v, %v", want, got, err)
		}
	}
	for _, raw := range []string{"", "ROOTS", "{\"caBundle\":\n\"X\"}"} {
		if got, err := api.DecodeGuestSetup([]byte(raw)); err == nil {
			t.Errorf("%q is %+v", raw, got)
		}
	}
}
