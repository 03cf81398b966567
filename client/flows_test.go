package client_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/client"
)

// openAPI is a client of a server that answers as the handler does.
func openAPI(t *testing.T, handler http.HandlerFunc) *client.Client {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	c, err := client.New(client.Config{APIURL: server.URL, APIKey: testKey})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func TestFlows(t *testing.T) {
	c := openAPI(t, func(w http.ResponseWriter, r *http.Request) {
		const want = "/sandboxes/iabc/network/flows?address=8.0.0.0%2F8&cursor=7&direction=out&latest=true&limit=3&name=%2A.example.com&protocol=tls&since=2026-11-21T10%3A00%3A00Z&verdict=deny"
		if got := r.URL.String(); got != want {
			t.Errorf("asked for %s\nwant %s", got, want)
		}
		fmt.Fprint(w, `{"flows":[{"cursor":9,"port":443}],"next":9,"lost":2}`)
	})
	page, err := c.Flows(t.Context(), "iabc", client.FlowFilter{
		Verdict: "deny", Direction: "out", Protocol: "tls", Name: "*.example.com", Address: "8.0.0.0/8",
		Since: time.Date(2026, 11, 21, 10, 0, 0, 0, time.UTC), Cursor: 7, Limit: 3, Latest: true,
	})
	if err != nil || len(page.Flows) != 1 || page.Flows[0].Port != 443 || page.Next != 9 || page.Lost != 2 {
		t.Errorf("%+v, %v", page, err)
	}
}

// A stream that breaks is taken up again where it was, and ends when the server
// says so.
func TestFollowFlows(t *testing.T) {
	streams := 0
	c := openAPI(t, func(w http.ResponseWriter, r *http.Request) {
		streams++
		w.Header().Set("Content-Type", "text/event-stream")
		switch streams {
		case 1:
			if got := r.URL.RawQuery; got != "follow=true&latest=true&limit=5" {
				t.Errorf("first %s", got)
			}
			fmt.Fprint(w, ": still here\n\nid: 4\nevent: flow\ndata: {\"cursor\":4,\"port\":1}\n\n")
		case 2:
			http.Error(w, "restarting", http.StatusBadGateway)
		default:
			if got := r.URL.RawQuery; got != "cursor=4&follow=true&limit=5" {
				t.Errorf("then %s", got)
			}
			fmt.Fprint(w, "event: lost\ndata: {\"lost\":3}\n\nid: 9\nevent: flow\ndata: {\"cursor\":9,\"port\":2}\n\nevent: end\ndata: {\"reason\":\"over\"}\n\n")
		}
	})
	var got []client.FlowEvent
	for event, err := range c.FollowFlows(t.Context(), "iabc", client.FlowFilter{Latest: true, Limit: 5}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, event)
	}
	want := []client.FlowEvent{
		{Flow: api.FlowRecord{Cursor: 4, Port: 1}}, {Lost: 3}, {Flow: api.FlowRecord{Cursor: 9, Port: 2}},
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || streams != 3 {
		t.Errorf("after %d streams: %v\nwant %v", streams, got, want)
	}
}

func TestFollowFlowsEnds(t *testing.T) {
	refusing := openAPI(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"code":404,"message":"no such sandbox"}`)
	})
	for _, err := range refusing.FollowFlows(t.Context(), "iabc", client.FlowFilter{}) {
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Status != http.StatusNotFound {
			t.Errorf("a refusal is %v", err)
		}
	}
	garbled := openAPI(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "event: flow\ndata: {\n\n") })
	for _, err := range garbled.FollowFlows(t.Context(), "iabc", client.FlowFilter{}) {
		if err == nil {
			t.Error("a garbled record was read")
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	quiet := openAPI(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "id: 1\nevent: flow\ndata: {\"cursor\":1}\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	events := 0
	for range quiet.FollowFlows(ctx, "iabc", client.FlowFilter{}) {
		events++
		cancel()
	}
	if events != 1 {
		t.Errorf("%d events after the caller left", events)
	}
}
