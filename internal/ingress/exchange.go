package ingress

import (
	"errors"
	"net/http"
	"time"
)

// exchange is one request for a port of a known sandbox, from the lookup to the
// end.
type exchange struct {
	in      *Ingress
	up      *upstream
	target  Target
	route   route
	request *http.Request // as it came; nothing changes it
	changes uint64        // of access, known before the lookup
	meter   meter

	answer *answer // nil until the request has been let in
	body   clientBody
	// record is filled in on the way, by the request's goroutine alone.
	record Record
}

// serveSandbox answers a request for a port of a sandbox.
func (in *Ingress) serveSandbox(w http.ResponseWriter, r *http.Request, rt route) {
	changes := in.changes.Load()
	if fail := checkRequest(r, rt); fail != nil {
		in.refuse(w, r, fail)
		return
	}
	target, ok := in.sandboxes.Sandbox(rt.id)
	if !ok || !target.complete(rt.address) {
		in.refuse(w, r, in.unknown(r, rt))
		return
	}
	up, err := in.upstream(target)
	if err != nil {
		in.refuse(w, r, in.explain(err, rt.address))
		return
	}
	x := &exchange{in: in, up: up, target: target, route: rt, request: r, changes: changes}
	x.meter.tallies = [...]*tally{&in.total, &up.tally}
	x.serve(w)
}

// unknown is the answer for a sandbox that does not exist. It comes from memory
// alone, and not too often for one client.
func (in *Ingress) unknown(r *http.Request, rt route) *failure {
	if client := clientAddr(r); client.IsValid() {
		if wait, ok := in.strangers.allow(client); !ok {
			return unknownTooOften(rt.address, wait)
		}
	}
	return notFound(rt.address)
}

// serve decides, and then passes the request on or answers it.
func (x *exchange) serve(w http.ResponseWriter) {
	x.up.tally.requests.Add(1)
	x.record = Record{
		Time: time.Now(), Client: clientAddr(x.request), Sandbox: x.route.id, Port: x.route.port,
		Method: x.request.Method, Path: x.request.URL.EscapedPath(),
	}
	defer x.finish()
	if fail := x.decide(w); fail != nil {
		x.record.Verdict, x.record.Reason, x.record.Status = Denied, Reason(fail.Code), fail.Status
		x.in.refuse(w, x.request, fail, &x.up.tally)
	}
}

// decide returns why the request does not pass. Then nothing has been written
// to w, and nothing has been contacted.
func (x *exchange) decide(w http.ResponseWriter) *failure {
	followed, fail := x.followLink(w)
	switch {
	case followed:
		x.answered(LinkFollowed, http.StatusSeeOther)
		return nil
	case fail != nil:
		return fail
	}
	grant, fail := x.target.admit(x.route, x.request, x.record.Time)
	switch {
	case fail != nil && fail.Code == codeTokenMissing && isPreflight(x.request) && !x.in.refusePreflight:
		x.answered(Preflight, http.StatusNoContent)
		answerPreflight(w, x.request)
		return nil
	case fail != nil:
		return fail
	case x.route.by == byPath && x.request.URL.Path == x.route.prefix && isSafe(x.request.Method):
		x.answered(SlashAdded, http.StatusTemporaryRedirect)
		x.addSlash(w)
		return nil
	}
	return x.forward(w, grant)
}

func (x *exchange) answered(reason Reason, status int) {
	x.record.Verdict, x.record.Reason, x.record.Status = Answered, reason, status
}

// finish reports the exchange, also when it ended in a panic.
func (x *exchange) finish() {
	if x.in.observer == nil {
		return
	}
	x.record.Duration = time.Since(x.record.Time)
	x.record.BytesIn, x.record.BytesOut = x.meter.in.Load(), x.meter.out.Load()
	x.in.observer.Finished(x.record)
}

// errRefused: the request was let in and must not go on.
var errRefused = errors.New("access was withdrawn")

// Recheck cuts what is open to a sandbox and would not be let in any more. Call
// it when a sandbox's tokens or the visibility of its ports have changed, after
// the lookup knows of it.
func (in *Ingress) Recheck(id string) {
	in.changes.Add(1)
	target, ok := in.sandboxes.Sandbox(id)
	if !ok {
		return // whatever is open ends with the sandbox
	}
	in.mu.Lock()
	up := in.upstreams[target.Done]
	in.mu.Unlock()
	if up != nil {
		up.recheck(target, time.Now())
	}
}

// recheckNow is for an exchange that may have entered too late for Recheck.
func (x *exchange) recheckNow() *failure {
	if x.in.changes.Load() == x.changes {
		return nil
	}
	target, ok := x.in.sandboxes.Sandbox(x.route.id)
	if !ok || !target.complete(x.route.address) || target.Done != x.target.Done {
		return notFound(x.route.address)
	}
	_, fail := target.admit(x.route, x.request, time.Now())
	return fail
}
