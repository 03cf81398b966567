package control

import (
	"net/http"
	"testing"

	"github.com/moat-sandbox/moat/api"
)

func TestExplain(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"]}`).SandboxID
	path := "/sandboxes/" + id + "/network/explain"
	for _, c := range []struct {
		body string
		want api.Explanation
	}{
		{`{"address":"1.1.1.1","port":443}`, api.Explanation{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1", Reason: "1.1.1.1 is in allowOut entry 1.1.1.1", Generation: 1}},
		{`{"address":"8.8.8.8","port":53,"protocol":"udp"}`, api.Explanation{Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0", Reason: "8.8.8.8 is in denyOut entry 0.0.0.0/0", Generation: 1}},
	} {
		got := decodeAs[api.Explanation](r.send(keyA, "POST", path, c.body).want(http.StatusOK))
		if got != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.body, got, c.want)
		}
	}
	metadata := decodeAs[api.Explanation](r.send(keyA, "POST", path, `{"address":"169.254.169.254","port":80}`).want(http.StatusOK))
	if metadata.Verdict != "deny" || metadata.Rule != "never" {
		t.Errorf("metadata service: %+v", metadata)
	}
	for body, text := range map[string]string{
		`{"address":"example.com"}`:                 `"example.com" is not an IPv4 or IPv6 address`,
		`{"address":"fe80::1%eth0"}`:                `is not an IPv4 or IPv6 address`,
		`{"address":"1.1.1.1","port":65536}`:        `port 65536`,
		`{"address":"1.1.1.1","protocol":"sctp"}`:   `protocol "sctp"`,
		`{"address":"1.1.1.1","port":"443"}`:        `port`,
		`{"address":"1.1.1.1","address":"1.1.1.2"}`: `address`,
	} {
		r.send(keyA, "POST", path, body).want(http.StatusBadRequest, text)
	}
}
