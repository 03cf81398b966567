package control

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/audit"
	"github.com/moat-sandbox/moat/internal/policy"
)

// note appends records of a sandbox, told apart by their ports.
func (r *rig) note(id string, ports ...uint16) {
	for _, port := range ports {
		r.flows.Append(audit.Record{
			Sandbox: id, Protocol: audit.TCP, Time: time.Unix(1000, 0), Verdict: policy.Allow,
			Dst: netip.AddrPortFrom(netip.MustParseAddr("1.1.1.1"), port),
		})
	}
}

func ports(flows []api.FlowRecord) string {
	var all []string
	for _, f := range flows {
		all = append(all, strconv.Itoa(int(f.Port)))
	}
	return strings.Join(all, " ")
}

func (r *rig) flowPage(key, id, query string) api.FlowPage {
	r.t.Helper()
	return decodeAs[api.FlowPage](r.send(key, "GET", "/sandboxes/"+id+"/network/flows?"+query, "").want(http.StatusOK))
}

func TestFlowsShowARecord(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	r.flows.Append(audit.Record{
		ID: 7, Time: time.Unix(1000, 123456789), Sandbox: id, Direction: audit.In, Protocol: audit.HTTP,
		Dst: netip.MustParseAddrPort("[2606:4700::1]:443"), Name: "api.example.com", Verdict: policy.Deny,
		Rule: "allowOut", Entry: "*.example.com", Reason: "because", Generation: 3, BytesUp: 1, BytesDown: 2,
		Duration: 1500 * time.Microsecond, Method: "GET", Path: "/x", Status: 403,
		Intercepted: true, Matched: "example.com", Injected: []string{"Authorization"},
	})
	page := r.flowPage(keyA, id, "")
	want := api.FlowRecord{
		Cursor: page.Next, Time: time.Unix(1000, 123456000).UTC(), Decision: "aaaaaaaaaaaao", Direction: "in", Protocol: "http",
		Address: "2606:4700::1", Port: 443, Name: "api.example.com", Verdict: "deny", Rule: "allowOut", Entry: "*.example.com",
		Reason: "because", Generation: 3, BytesUp: 1, BytesDown: 2, DurationMs: 1.5, Method: "GET", Path: "/x", Status: 403,
		Intercepted: true, Matched: "example.com", Injected: []string{"Authorization"},
	}
	if len(page.Flows) != 1 || !reflect.DeepEqual(page.Flows[0], want) {
		t.Errorf("got %+v\nwant %+v", page.Flows, want)
	}
}

func TestFlowsPages(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	if raw := r.send(keyA, "GET", "/sandboxes/"+id+"/network/flows", "").want(http.StatusOK); raw.body != `{"flows":[],"next":0,"lost":0}` {
		t.Errorf("no flows: %s", raw.body)
	}
	r.note(id, 1, 2, 3, 4, 5)
	cursor := uint64(0)
	for _, want := range []string{"1 2", "3 4", "5", ""} {
		page := r.flowPage(keyA, id, fmt.Sprintf("limit=2&cursor=%d", cursor))
		if got := ports(page.Flows); got != want || page.Lost != 0 {
			t.Errorf("after %d: %q with %d lost, want %q", cursor, got, page.Lost, want)
		}
		cursor = page.Next
	}
	if got := ports(r.flowPage(keyA, id, "limit=2&latest=true").Flows); got != "4 5" {
		t.Errorf("latest: %q", got)
	}
	for i := range uint16(200) { // the log of the rig holds 100
		r.note(id, 1000+i)
	}
	if page := r.flowPage(keyA, id, ""); page.Lost != 105 || !strings.HasPrefix(ports(page.Flows), "1100 ") {
		t.Errorf("%d lost, the first is %s", page.Lost, ports(page.Flows[:1]))
	}
	if page := r.flowPage(keyA, id, "latest=true&limit=1"); page.Lost != 0 {
		t.Errorf("%d lost for who asks for the last one", page.Lost)
	}
	if page := r.flowPage(keyA, id, fmt.Sprintf("cursor=%d", cursor)); page.Lost == 0 {
		t.Error("nobody says that records were lost after the cursor")
	}
}

func TestFlowsFilter(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	for i, record := range []audit.Record{
		{Protocol: audit.TLS, Name: "example.com", Verdict: policy.Allow},
		{Protocol: audit.DNS, Name: "bücher.example.com"},
		{Protocol: audit.TCP, Direction: audit.In, Time: time.Unix(2000, 0)},
		{Protocol: audit.UDP, Dst: netip.MustParseAddrPort("8.8.8.8:0")},
	} {
		record.Sandbox = id
		record.Dst = netip.AddrPortFrom(record.Dst.Addr(), uint16(i+1))
		if record.Name == "bücher.example.com" {
			record.Name = "xn--bcher-kva.example.com" // as records have it
		}
		r.flows.Append(record)
	}
	for query, want := range map[string]string{
		"":                               "1 2 3 4",
		"verdict=allow":                  "1",
		"verdict=deny":                   "2 3 4",
		"direction=in":                   "3",
		"direction=out&verdict=deny":     "2 4",
		"protocol=dns":                   "2",
		"name=Example.com.":              "1",
		"name=*.EXAMPLE.com":             "2",
		"name=b%C3%BCcher.example.com":   "2",
		"name=*":                         "1 2",
		"address=8.8.8.8":                "4",
		"address=8.8.1.1/16":             "4",
		"address=::ffff:8.8.8.8":         "4",
		"address=9.9.9.9":                "",
		"since=1970-01-01T00:33:20Z":     "3",
		"since=1970-01-01T00:33:21Z":     "",
		"latest=true&limit=2":            "3 4",
		"latest=true&limit=1&name=*":     "2",
		"follow=false&latest=false":      "1 2 3 4",
		"cursor=&limit=&verdict=&since=": "1 2 3 4",
	} {
		if got := ports(r.flowPage(keyA, id, query).Flows); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for query, text := range map[string]string{
		"verdict=no":          `verdict must be allow or deny, got "no"`,
		"direction=up":        `direction must be out or in`,
		"protocol=sctp":       `protocol must be one of`,
		"name=a..b":           `name must be a domain name`,
		"name=1.1.1.1":        `name must be a domain name`,
		"address=example.com": `address must be an address or a CIDR`,
		"since=yesterday":     `since must be an RFC 3339 time`,
		"limit=0":             `limit must be a number from 1 to 1000`,
		"limit=1001":          `limit must be a number from 1 to 1000`,
		"cursor=-1":           `cursor must be the cursor of a record`,
		"latest=1":            `latest must be true or false`,
		"verdcit=deny":        `Query parameter verdcit is not known here`,
		"name=a.b&name=c.d":   `Query parameter name was given 2 times`,
	} {
		r.send(keyA, "GET", "/sandboxes/"+id+"/network/flows?"+query, "").want(http.StatusBadRequest, text)
	}
}

// Records are for the team of the sandbox, also after its end; for all others
// the sandbox does not exist.
func TestFlowsBelongToTheTeam(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	r.note(id, 1)
	path := "/sandboxes/" + id + "/network/flows"
	check := func(when string) {
		t.Helper()
		if got := ports(r.flowPage(keyA, id, "").Flows); got != "1" {
			t.Errorf("%s: its team sees %q", when, got)
		}
		stranger := r.send(keyB, "GET", path, "").want(http.StatusNotFound)
		if nobody := r.send(keyB, "GET", "/sandboxes/"+id[:20]+"z/network/flows", "").want(http.StatusNotFound); stranger.body != strings.ReplaceAll(nobody.body, id[:20]+"z", id) {
			t.Errorf("%s: another team's sandbox: %s\none that never was: %s", when, stranger.body, nobody.body)
		}
		r.send("", "GET", path, "").want(http.StatusUnauthorized)
	}
	check("alive")
	r.flows.Retire(id, "team-a")
	r.send(keyA, "DELETE", "/sandboxes/"+id, "").want(http.StatusNoContent)
	check("killed")
	r.send(keyA, "GET", "/sandboxes/I!/network/flows", "").want(http.StatusBadRequest, "Invalid sandbox ID")
}

// events is a followed log.
type events struct {
	t       *testing.T
	answer  *http.Response
	scanner *bufio.Scanner
	cancel  context.CancelFunc
}

func (r *rig) follow(key, id, query, lastEvent string) *events {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	request, err := http.NewRequestWithContext(ctx, "GET", r.public.URL+"/sandboxes/"+id+"/network/flows?follow=true"+query, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	request.Header.Set(api.HeaderAPIKey, key)
	if lastEvent != "" {
		request.Header.Set("Last-Event-ID", lastEvent)
	}
	answer, err := http.DefaultClient.Do(request)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { cancel(); answer.Body.Close() })
	if answer.StatusCode != 200 || answer.Header.Get("Content-Type") != "text/event-stream" {
		r.t.Fatalf("%s %s", answer.Status, answer.Header.Get("Content-Type"))
	}
	return &events{r.t, answer, bufio.NewScanner(answer.Body), cancel}
}

// next is the name, the id and the data of the next event; empty at the end.
func (e *events) next() (name, id, data string) {
	for e.scanner.Scan() {
		field, value, _ := strings.Cut(e.scanner.Text(), ": ")
		switch field {
		case "event":
			name = value
		case "id":
			id = value
		case "data":
			data = value
		case "":
			if name != "" {
				return name, id, data
			}
		}
	}
	return name, id, data
}

// want reads the records with these ports, and returns the id of the last.
func (e *events) want(ports ...int) (id string) {
	e.t.Helper()
	for _, port := range ports {
		var name, data string
		name, id, data = e.next()
		if want := fmt.Sprintf(`"port":%d,`, port); name != api.EventFlow || !strings.Contains(data, want) {
			e.t.Fatalf("event %q with %s, want a flow with %s", name, data, want)
		}
	}
	return id
}

func TestFollowFlows(t *testing.T) {
	r := newRig(t)
	id, other := r.create(keyA, "").SandboxID, r.create(keyA, "").SandboxID
	r.note(id, 1, 2, 3)
	all, tail := r.follow(keyA, id, "", ""), r.follow(keyA, id, "&latest=true&limit=1", "")
	all.want(1, 2, 3)
	tail.want(3)
	r.note(other, 99)
	r.note(id, 4)
	tail.want(4)
	seen := all.want(4)
	r.note(id, 5)
	// The URL of who comes back still says what it did at first.
	back := r.follow(keyA, id, "&latest=true&limit=50&cursor=1", seen)
	back.want(5)
	back.cancel()

	for i := range uint16(150) { // more than the log of the rig holds
		r.note(id, 1000+i)
	}
	late := r.follow(keyA, id, "", seen)
	if name, _, data := late.next(); name != api.EventLost || data != `{"lost":1}` {
		t.Errorf("who missed records is told %q %s", name, data)
	}
	late.want(1050)

	r.flows.Retire(other, "team-a")
	quiet := r.follow(keyA, other, "", "")
	quiet.want(99)
	if name, _, data := quiet.next(); name != api.EventEnd || data != `{"reason":"the sandbox has ended"}` {
		t.Errorf("at the end: %q %s", name, data)
	}
	if quiet.scanner.Scan() {
		t.Errorf("after the end: %q", quiet.scanner.Text())
	}
	r.send(keyB, "GET", "/sandboxes/"+id+"/network/flows?follow=true", "").want(http.StatusNotFound)

	r.stop()
	for name := "x"; name != ""; { // who follows does not keep the server from stopping
		name, _, _ = tail.next()
	}
}

func TestFollowersAreBounded(t *testing.T) {
	r := newRig(t)
	id := r.create(keyA, "").SandboxID
	var one *events
	for range maxStreams {
		one = r.follow(keyA, id, "", "")
	}
	path := "/sandboxes/" + id + "/network/flows?follow=true"
	r.send(keyA, "GET", path, "").want(http.StatusTooManyRequests, "as many as it may")
	r.note(r.create(keyB, "").SandboxID, 1)
	r.follow(keyB, r.create(keyB, "").SandboxID, "", "") // another team is not concerned
	one.cancel()
	for { // the server finds out in its own time
		r.api.streams.mu.Lock()
		open := r.api.streams.open["team-a"]
		r.api.streams.mu.Unlock()
		if open < maxStreams {
			break
		}
		if t.Context().Err() != nil {
			t.Fatal("a stream that was left still counts")
		}
		time.Sleep(time.Millisecond)
	}
	r.follow(keyA, id, "", "")
}
