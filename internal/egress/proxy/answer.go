package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/moat-sandbox/moat/internal/egress/proxy/head"
)

// pageSize is how much of an answer's body is read at a time.
const pageSize = 32 << 10

// answer sends the server's answer to the client.
func (x *exchange) answer(r *http.Response) (more bool) {
	defer r.Body.Close()
	hasBody := x.request.Method != http.MethodHead && r.StatusCode != http.StatusNoContent && r.StatusCode != http.StatusNotModified
	inChunks := hasBody && r.ContentLength < 0 && x.request.Minor > 0
	x.keep = x.keep && (!hasBody || r.ContentLength >= 0 || inChunks)
	x.status = r.StatusCode
	h := endToEnd(r.Header)
	if hasBody || r.StatusCode == http.StatusNoContent {
		delete(h, "Content-Length") // written below
	}
	x.startLine(r.StatusCode, strings.TrimPrefix(r.Status, strconv.Itoa(r.StatusCode)))
	_ = h.Write(x.out) // errors stay in the writer, as of all that follows
	switch {
	case inChunks:
		x.line("Transfer-Encoding: chunked")
		for name := range r.Trailer {
			x.line("Trailer: " + name)
		}
	case hasBody && r.ContentLength >= 0:
		x.line("Content-Length: " + strconv.FormatInt(r.ContentLength, 10))
	}
	err := x.endHead()
	if err == nil && hasBody {
		err = x.copyBody(r, inChunks)
	}
	if err != nil {
		x.broken = true
		return false
	}
	return x.keep
}

// startLine begins an answer. The version is the client's, lest it expects what
// it cannot understand.
func (x *exchange) startLine(status int, text string) {
	minor := 1
	if x.request != nil {
		minor = x.request.Minor
	}
	fmt.Fprintf(x.out, "HTTP/1.%d %03d %s\r\n", minor, status, strings.Trim(text, " "))
}

func (x *exchange) line(text string) { _, _ = x.out.WriteString(text + "\r\n") }

// endHead tells whether the connection stays open, and sends the head.
func (x *exchange) endHead() error {
	switch {
	case !x.keep:
		x.line("Connection: close")
	case x.request.Minor == 0:
		x.line("Connection: keep-alive")
	}
	x.line("")
	return x.out.Flush()
}

// copyBody passes on what comes as it comes.
func (x *exchange) copyBody(r *http.Response, inChunks bool) error {
	page, ok := x.flow.proxy.pages.Get().(*[pageSize]byte)
	if !ok {
		page = new([pageSize]byte)
	}
	defer x.flow.proxy.pages.Put(page)
	for {
		n, err := r.Body.Read(page[:])
		if n > 0 {
			if inChunks {
				x.line(strconv.FormatInt(int64(n), 16))
			}
			_, _ = x.out.Write(page[:n])
			if inChunks {
				x.line("")
			}
			if failed := x.out.Flush(); failed != nil {
				return failed
			}
		}
		switch {
		case errors.Is(err, io.EOF) && inChunks:
			x.line("0")
			_ = r.Trailer.Write(x.out)
			x.line("")
			return x.out.Flush()
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
	}
}

// interim passes on what a server says before its answer.
func (x *exchange) interim(status int, h textproto.MIMEHeader) error {
	x.outMu.Lock()
	defer x.outMu.Unlock()
	if x.final || x.request.Minor == 0 || status == http.StatusContinue {
		return nil
	}
	x.startLine(status, http.StatusText(status))
	_ = endToEnd(http.Header(h)).Write(x.out)
	x.line("")
	return x.out.Flush()
}

// answering notes that the server has begun to say something.
func (x *exchange) answering() {
	x.outMu.Lock()
	defer x.outMu.Unlock()
	x.answered = true
}

// askForBody asks the client for a body that it holds back, once, because the
// server has asked for it.
func (x *exchange) askForBody() {
	x.outMu.Lock()
	defer x.outMu.Unlock()
	x.sendContinue()
}

// wantBody asks the client for a body that it holds back, because the server
// has said nothing for a while. If the server has answered, that was all.
func (x *exchange) wantBody() {
	x.outMu.Lock()
	defer x.outMu.Unlock()
	if !x.answered {
		x.sendContinue()
	}
}

// sendContinue sends "100 Continue" to who waits for it. The caller holds outMu.
func (x *exchange) sendContinue() {
	if x.final || x.continued || !x.request.Continue {
		return
	}
	x.continued = true
	x.startLine(http.StatusContinue, http.StatusText(http.StatusContinue))
	x.line("")
	_ = x.out.Flush() // if it fails, so does the answer
}

// endInterim says that the final answer begins. It ends the connection where a
// body is held back that nobody asks for now: it may come or not.
func (x *exchange) endInterim() {
	x.outMu.Lock()
	defer x.outMu.Unlock()
	x.final = true
	if x.body != nil && x.request.Continue && !x.continued {
		x.keep = false
	}
}

// explanation is the body of the answers that do not come from a server.
type explanation struct {
	Error    string `json:"error"`
	Reason   string `json:"reason"`
	Rule     string `json:"rule,omitempty"`
	Decision string `json:"decision"`
	Host     string `json:"host,omitempty"`
}

// text returns the explanation as a line of JSON.
func (e explanation) text() []byte {
	text, err := json.Marshal(e)
	if err != nil { // strings can always be marshalled
		return nil
	}
	return append(text, '\n')
}

// deny answers a request that is not let through. The connection stays usable.
func (x *exchange) deny() (more bool) {
	return x.explain(x.verdict.refusal())
}

// refusal says how a request that is not let through is answered.
func (v verdict) refusal() (status int, what, reason string) {
	switch v.rule {
	case ruleHost:
		return http.StatusMisdirectedRequest, "misdirected request", v.reason
	case ruleSecret:
		return http.StatusBadGateway, "the request cannot be completed", v.reason
	}
	return http.StatusForbidden, "blocked by the sandbox's network policy", v.reason
}

// refuse answers what cannot be understood, and ends the connection: where the
// next request begins is not known.
func (x *exchange) refuse(malformed *head.Error) (more bool) {
	x.verdict = x.flow.refusal(ruleMalformed, malformed.What)
	x.keep, x.status = false, malformed.Status
	x.record()
	return x.explain(malformed.Status, "malformed request", malformed.What)
}

// explain sends an answer of our own.
func (x *exchange) explain(status int, what, reason string) (more bool) {
	x.endInterim()
	x.status, x.verdict.reason = status, reason
	e := explanation{Error: what, Reason: reason, Rule: x.verdict.rule, Decision: x.verdict.id.String()}
	if x.request != nil {
		e.Host = x.request.Authority.String()
	}
	text := e.text()
	x.startLine(status, http.StatusText(status))
	x.line("Content-Type: application/json")
	x.line("Cache-Control: no-store")
	x.line("Content-Length: " + strconv.Itoa(len(text)))
	err := x.endHead()
	if err == nil && (x.request == nil || x.request.Method != http.MethodHead) {
		_, _ = x.out.Write(text)
		err = x.out.Flush()
	}
	x.broken = err != nil
	return x.keep && err == nil
}
