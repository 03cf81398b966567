package control

import (
	"net/http"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

func (r *rig) explain(id, body string) api.Explanation {
	r.t.Helper()
	return decodeAs[api.Explanation](r.send(keyA, "POST", "/sandboxes/"+id+"/network/explain", body).want(http.StatusOK))
}

func TestExplain(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"allowOut":["1.1.1.1","*.example.com"],"denyOut":["0.0.0.0/0"]}`).SandboxID
	open := r.create(keyA, `"network":{"denyOut":["8.8.8.8"]}`).SandboxID
	ruled := r.create(keyA, `"allow_internet_access":false,"network":{"rules":[
		{"name":"no admin","match":{"host":"api.example.com","path":"/admin*"},"action":{"allow":false}},
		{"name":"reads","match":{"host":"api.example.com","method":["GET"]},"action":{"allow":true,"stripCredentials":true,"inject":[{"header":"authorization","secret":"s"}]}}]}`).SandboxID
	byAddress := r.create(keyA, `"network":{"allowOut":["1.1.1.0/24"],"denyOut":["0.0.0.0/0"],"rules":[
		{"name":"reads","match":{"host":"1.1.1.1","scheme":"http","method":["GET"]},"action":{"allow":true}}]}`).SandboxID
	headers := r.create(keyA, `"network":{"allowOut":["1.1.1.1"],"denyOut":["0.0.0.0/0"],"rules":{"api.example.com":[{"transform":{"headers":{"X-A":"1"}}}]}}`).SandboxID
	for _, c := range []struct {
		id, body string
		want     api.Decision
	}{
		{id, `{"address":"1.1.1.1","port":443}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1", Reason: "1.1.1.1 is in allowOut entry 1.1.1.1"}},
		{id, `{"address":"8.8.8.8","port":53,"protocol":"udp"}`, api.Decision{Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0", Reason: "8.8.8.8 is in denyOut entry 0.0.0.0/0"}},
		{id, `{"url":"https://API.example.com/secret?token=x"}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "*.example.com", Reason: "*.example.com in allowOut allows api.example.com"}},
		{id, `{"host":"example.com","port":443}`, api.Decision{Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0", Reason: "no entry of allowOut names example.com"}},
		{id, `{"host":"example.com","address":"1.1.1.1","port":443}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1", Reason: "1.1.1.1 is in allowOut entry 1.1.1.1"}},
		{id, `{"host":"api.example.com","port":22}`, api.Decision{Verdict: "deny", Rule: "name", Reason: "names in allowOut work for TCP on ports 80 and 443 only, so api.example.com cannot be reached by name on tcp port 22"}},
		{id, `{"host":"api.example.com","protocol":"dns"}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "*.example.com", Reason: "*.example.com in allowOut allows api.example.com"}},
		{id, `{"url":"http://1.1.1.1:8080/"}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1", Reason: "1.1.1.1 is in allowOut entry 1.1.1.1"}},
		{ruled, `{"url":"https://api.example.com/v1/x?token=1"}`, api.Decision{
			Verdict: "allow", Rule: "rules", Entry: "api.example.com", Reason: "api.example.com in rules covers api.example.com, and decides about each request",
			Change: &api.RequestChange{Rule: "reads", Headers: []string{"Authorization"}, StripCredentials: true},
		}},
		{ruled, `{"url":"https://api.example.com/v1/x","method":"POST"}`, api.Decision{Verdict: "deny", Rule: "rules", Entry: "", Reason: "no rule for api.example.com matches the request"}},
		{ruled, `{"url":"http://api.example.com/admin"}`, api.Decision{Verdict: "deny", Rule: "rules", Entry: "no admin", Reason: "rule no admin denies the request"}},
		{ruled, `{"url":"https://other.example.com"}`, api.Decision{Verdict: "deny", Rule: "default", Reason: "no entry of allowOut names other.example.com"}},
		{ruled, `{"host":"api.example.com","port":443}`, api.Decision{Verdict: "allow", Rule: "rules", Entry: "api.example.com", Reason: "api.example.com in rules covers api.example.com, and decides about each request"}},
		{open, `{"url":"https://example.org"}`, api.Decision{Verdict: "allow", Rule: "default", Reason: "example.org is in no list and the default is allow"}},
		{open, `{"host":"example.org","address":"8.8.8.8","port":443}`, api.Decision{Verdict: "deny", Rule: "default", Reason: "no entry of allowOut names example.org"}},
		// An address of the sandbox's choice: rules about it are asked, and what
		// rules are about does not go there.
		{byAddress, `{"address":"1.1.1.1","port":80}`, api.Decision{
			Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.0/24", Reason: "1.1.1.1 is in allowOut entry 1.1.1.0/24; rules decide about each request to that address",
		}},
		{byAddress, `{"host":"x.org","address":"1.1.1.1","port":80}`, api.Decision{
			Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.0/24", Reason: "1.1.1.1 is in allowOut entry 1.1.1.0/24; rules decide about each request to that address",
		}},
		{byAddress, `{"host":"x.org","address":"1.1.1.2","port":80}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.0/24", Reason: "1.1.1.2 is in allowOut entry 1.1.1.0/24"}},
		{byAddress, `{"url":"http://x.org/","address":"1.1.1.1"}`, api.Decision{
			Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.0/24", Reason: "1.1.1.1 is in allowOut entry 1.1.1.0/24", Change: &api.RequestChange{Rule: "reads"},
		}},
		{byAddress, `{"url":"http://x.org/","address":"1.1.1.1","method":"PUT"}`, api.Decision{Verdict: "deny", Rule: "rules", Reason: "no rule for 1.1.1.1 matches the request"}},
		{byAddress, `{"url":"http://x.org/","address":"1.1.1.2","method":"PUT"}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.0/24", Reason: "1.1.1.2 is in allowOut entry 1.1.1.0/24"}},
		{headers, `{"url":"https://api.example.com/","address":"1.1.1.1"}`, api.Decision{Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0", Reason: "no entry of allowOut names api.example.com"}},
		{headers, `{"url":"https://www.example.com/","address":"1.1.1.1"}`, api.Decision{Verdict: "allow", Rule: "allowOut", Entry: "1.1.1.1", Reason: "1.1.1.1 is in allowOut entry 1.1.1.1"}},
	} {
		want := api.Explanation{Decision: c.want, Generation: 1}
		if got := r.explain(c.id, c.body); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.body, got, want)
		}
	}
	metadata := r.explain(id, `{"address":"169.254.169.254","port":80}`)
	if metadata.Verdict != "deny" || metadata.Rule != "never" {
		t.Errorf("metadata service: %+v", metadata)
	}
	path := "/sandboxes/" + id + "/network/explain"
	for body, text := range map[string]string{
		`{}`: `one of url, host, address and candidate is needed`,
		`{"candidate":{"allowPublicTraffic":false}}`:    `allowPublicTraffic cannot be changed after the sandbox is created`,
		`{"adress":"1.1.1.1"}`:                          `adress is not a setting here`,
		`{"port":443}`:                                  `host or address is needed`,
		`{"address":"example.com"}`:                     `"example.com" is not an IPv4 or IPv6 address`,
		`{"address":"fe80::1%eth0"}`:                    `is not an IPv4 or IPv6 address`,
		`{"host":"a..b","port":443}`:                    `host "a..b" is not a domain name`,
		`{"host":"a.b","port":443,"method":"GET"}`:      `method needs url`,
		`{"url":"http://a.b","method":"GE T"}`:          `method "GE T" is not a method`,
		`{"url":"ftp://example.com/"}`:                  `url is not one of http or https`,
		`{"url":"https://example.com","port":1}`:        `url excludes`,
		`{"url":"https://1.2.3.4","address":"1.2.3.5"}`: `address excludes a url with an address in it`,
		`{"url":"https://example.com:99999/"}`:          `port 99999`,
		`{"host":"a.b","protocol":"dns","port":53}`:     `protocol dns needs a host`,
		`{"address":"1.1.1.1","port":65536}`:            `port 65536`,
		`{"address":"1.1.1.1","protocol":"sctp"}`:       `protocol "sctp"`,
		`{"address":"1.1.1.1","port":"443"}`:            `port`,
		`{"address":"1.1.1.1","address":"1.1.1.2"}`:     `address`,
		`{"candidate":{"allowOut":["1.1.1.300"]}}`:      `1.1.1.300`,
		`{"candidate":{"allowout":["1.1.1.1"]}}`:        `candidate.allowout is not a setting here`,
		`{"candidate":{"allowOut":["a.b"]}}`:            `ALL_TRAFFIC`,
		`{"candidate":{"allowOut":"1.1.1.1"}}`:          `candidate.allowOut must be a list`,
	} {
		r.send(keyA, "POST", path, body).want(http.StatusBadRequest, text)
	}
	r.send(keyB, "POST", path, `{"address":"1.1.1.1"}`).want(http.StatusNotFound)
}

// A candidate is held against the flow that is asked about and against what was
// recorded, and changes nothing.
func TestExplainCandidate(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, `"network":{"allowOut":["1.1.1.1","*.example.com"],"denyOut":["0.0.0.0/0"]}`).SandboxID
	synthetic := netip.MustParseAddr("198.18.0.9") // never reachable, as what we make up for names
	for i, record := range []audit.Record{
		{Protocol: audit.TLS, Name: "api.example.com", Verdict: policy.Allow, Dst: netip.MustParseAddrPort("93.184.216.34:443")},
		{Protocol: audit.TLS, Name: "api.example.com", Verdict: policy.Allow, Dst: netip.MustParseAddrPort("93.184.216.35:443")},
		{Protocol: audit.TCP, Verdict: policy.Allow, Dst: netip.MustParseAddrPort("1.1.1.1:53")},
		{Protocol: audit.HTTP, Name: "pkg.example.net", Rule: "denyOut", Dst: netip.AddrPortFrom(synthetic, 80)},
		{Protocol: audit.DNS, Name: "pkg.example.net", Verdict: policy.Deny, Rule: "denyOut"},
		{Protocol: audit.TLS, Name: "other.org", Rule: "denyOut", Dst: netip.AddrPortFrom(synthetic, 443)}, // both refuse it
		{Protocol: audit.TCP, Rule: "limit", Dst: netip.MustParseAddrPort("8.8.8.8:80")},                   // no policy's doing
		{Protocol: audit.UDP, Rule: "denyOut", Dst: netip.MustParseAddrPort("8.8.8.8:123")},
		{Protocol: audit.TCP, Rule: "never", Dst: netip.MustParseAddrPort("10.0.0.1:80")},
		{Protocol: audit.HTTP, Direction: audit.In, Verdict: policy.Allow, Dst: netip.MustParseAddrPort("10.0.0.1:80")},
	} {
		record.Sandbox, record.Time = id, time.Unix(int64(1000+i), 0)
		r.flows.Append(record)
	}
	got := r.explain(id, `{"host":"pkg.example.net","port":443,"candidate":{"allowOut":["pkg.example.net","8.8.8.0/24"],"denyOut":["0.0.0.0/0"]}}`)
	at := func(i int64) time.Time { return time.Unix(1000+i, 0).UTC() }
	denied := func(reason string) api.Decision {
		return api.Decision{Verdict: "deny", Rule: "denyOut", Entry: "0.0.0.0/0", Reason: reason}
	}
	allowed := func(entry, reason string) api.Decision {
		return api.Decision{Verdict: "allow", Rule: "allowOut", Entry: entry, Reason: reason}
	}
	yes := allowed("pkg.example.net", "pkg.example.net in allowOut allows pkg.example.net")
	want := api.Explanation{
		Decision: denied("no entry of allowOut names pkg.example.net"), Generation: 1, Candidate: &yes,
		Replay: &api.Replay{
			Records: 9,
			Refused: []api.ReplayedFlow{
				{Protocol: "tls", Name: "api.example.com", Port: 443, Count: 2, Last: at(1), Decision: denied("no entry of allowOut names api.example.com")},
				{Protocol: "tcp", Address: "1.1.1.1", Port: 53, Count: 1, Last: at(2), Decision: denied("1.1.1.1 is in denyOut entry 0.0.0.0/0")},
			},
			Allowed: []api.ReplayedFlow{
				{Protocol: "udp", Address: "8.8.8.8", Port: 123, Count: 1, Last: at(7), Decision: allowed("8.8.8.0/24", "8.8.8.8 is in allowOut entry 8.8.8.0/24")},
				{Protocol: "dns", Name: "pkg.example.net", Count: 1, Last: at(4), Decision: yes},
				{Protocol: "http", Name: "pkg.example.net", Port: 80, Count: 1, Last: at(3), Decision: yes},
			},
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\n    %+v\nwant %+v\n     %+v", got, got.Replay, want, want.Replay)
	}
	nothing := r.explain(id, `{"candidate":{"allowOut":["1.1.1.1","*.example.com"],"denyOut":["0.0.0.0/0"]}}`)
	if nothing.Verdict != "" || nothing.Candidate != nil || len(nothing.Replay.Refused)+len(nothing.Replay.Allowed) != 0 {
		t.Errorf("the present document as the candidate: %+v %+v", nothing, nothing.Replay)
	}
	if record := r.record(id); record.Generation != 1 {
		t.Errorf("asking made generation %d", record.Generation)
	}
}

// A recorded request is held against the rules about the address that it went to,
// whatever host it was for; and so is QUIC against the lack of rules.
func TestReplayOfRules(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	to := netip.MustParseAddr("93.184.216.34")
	for _, method := range []string{"GET", "POST"} {
		r.flows.Append(audit.Record{
			Sandbox: id, Protocol: audit.HTTP, Verdict: policy.Allow, Name: "x.example", Dst: netip.AddrPortFrom(to, 80), Method: method, Path: "/",
		})
	}
	r.flows.Append(audit.Record{Sandbox: id, Protocol: audit.TCP, Verdict: policy.Allow, Dst: netip.AddrPortFrom(to, 80)})
	r.flows.Append(audit.Record{Sandbox: id, Protocol: audit.UDP, Verdict: policy.Deny, Rule: "quic", Dst: netip.AddrPortFrom(to, 443)})
	rules := `[{"name":"r","match":{"host":"93.184.216.34","scheme":"http","method":["GET"]},"action":{"allow":true}}]`
	replay := r.explain(id, `{"candidate":{"rules":`+rules+`}}`).Replay
	reasons := make(map[string]bool)
	for _, flow := range replay.Refused {
		reasons[flow.Protocol+": "+flow.Reason] = true
	}
	if !reasons["http: no rule for 93.184.216.34 matches the request"] || !reasons["tcp: rules decide about each request to 93.184.216.34, and this is none"] ||
		len(replay.Refused) != 2 || len(replay.Allowed) != 0 {
		t.Errorf("with rules: %+v", replay)
	}
	if replay := r.explain(id, `{"candidate":{}}`).Replay; len(replay.Refused) != 0 || len(replay.Allowed) != 1 || replay.Allowed[0].Protocol != "udp" {
		t.Errorf("without: %+v", replay)
	}
}

func TestReplayIsBounded(t *testing.T) {
	r := newRig(t, func(c *Config) {
		log, err := audit.New(audit.Config{})
		if err != nil {
			t.Fatal(err)
		}
		c.Flows = log
	})
	id := r.create(keyA, "").SandboxID
	for i := range uint16(2500) {
		r.api.Flows.(*audit.Log).Append(audit.Record{
			Sandbox: id, Protocol: audit.TCP, Verdict: policy.Allow, Dst: netip.AddrPortFrom(netip.MustParseAddr("1.1.1.1"), i+1),
		})
	}
	replay := r.explain(id, `{"candidate":{"denyOut":["1.1.1.1"]}}`).Replay
	if replay.Records != 2500 || len(replay.Refused) != maxReplayed || replay.Omitted != 2400 {
		t.Errorf("%d records, %d refused, %d omitted", replay.Records, len(replay.Refused), replay.Omitted)
	}
}
