package control

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/policy"
	"github.com/moat-sandbox/moat/internal/sandbox"
)

// defaultTimeout applies to both dialects. E2B's own server gives 15 s to the
// first one, but its SDKs always send a timeout there; the Cube SDK does not,
// and its sandboxes would die in the middle of a script.
const defaultTimeout = 300 * time.Second

// maxMetadata bounds the keys and values of a sandbox's metadata, in bytes:
// they come back with every list.
const maxMetadata = 64 << 10

// newSandbox is api.NewSandbox with everything else a client may send.
type newSandbox struct {
	api.NewSandbox
	Network *networkBody `json:"network"`
	// CamelInternet is Cube's spelling in updates. Overlooking it here would
	// leave a sandbox open that was meant to be closed.
	CamelInternet *bool                     `json:"allowInternetAccess"`
	Rest          map[string]jsontext.Value `json:",embed"`
}

func createV1(c *call) error {
	return c.create(func(body *newSandbox) bool { return body.Secure != nil && *body.Secure })
}

// createV2 ignores secure, as E2B does: these sandboxes always are.
func createV2(c *call) error {
	return c.create(func(*newSandbox) bool { return true })
}

func (c *call) create(secure func(*newSandbox) bool) error {
	var body newSandbox
	if err := c.body(&body, false); err != nil {
		return err
	}
	// In E2B's order, so that of several mistakes the same one is reported.
	if err := c.checkTemplate(body.TemplateID); err != nil {
		return err
	}
	if body.Timeout != nil && *body.Timeout <= 0 {
		return badRequest("Timeout must be greater than 0")
	}
	timeout, err := c.timeout(body.Timeout)
	if err != nil {
		return err
	}
	if err := refuseUnserved("", body.Rest, createUnserved); err != nil {
		return err
	}
	if err := refuseMisplaced(body.Rest); err != nil {
		return err
	}
	internet, err := agree("allow_internet_access", body.AllowInternetAccess, "allowInternetAccess", body.CamelInternet)
	if err != nil {
		return err
	}
	document := policy.Document{Default: defaultVerdict(internet)}
	if body.Network != nil {
		if document, err = body.Network.translate("network.", internet); err != nil {
			return err
		}
	}
	if err := c.CheckNetwork(document); err != nil {
		return err
	}
	if err := checkStrings(body.Metadata, body.EnvVars); err != nil {
		return err
	}
	return c.start(sandbox.Spec{
		Team:           c.team,
		Template:       body.TemplateID,
		Timeout:        timeout,
		Secure:         secure(&body),
		Metadata:       body.Metadata,
		Env:            body.EnvVars,
		Network:        document,
		InternetAccess: internet,
	})
}

func (c *call) start(spec sandbox.Spec) error {
	record, err := c.Engine.Create(c.r.Context(), spec)
	if errors.Is(err, sandbox.ErrTemplateNotFound) { // removed since it was checked
		return templateNotFound(spec.Template)
	}
	if err != nil {
		return err
	}
	return c.reply(http.StatusCreated, c.connection(record))
}

// templateRef is the form of E2B's references: namespace, name and tag.
var templateRef = regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9._-]*/)?[A-Za-z0-9][A-Za-z0-9._-]*(:[A-Za-z0-9._-]+)?$`)

func (c *call) checkTemplate(ref string) error {
	if ref == "" {
		return badRequest("templateID is required")
	}
	if len(ref) > 256 || !templateRef.MatchString(ref) {
		return badRequest("Invalid template reference: %q", clip(ref))
	}
	_, err := c.Templates.Resolve(c.r.Context(), ref)
	if errors.Is(err, sandbox.ErrTemplateNotFound) {
		return templateNotFound(ref)
	}
	return err
}

// checkStrings refuses what no process could be given and no list should carry.
func checkStrings(metadata, env map[string]string) error {
	size := 0
	for k, v := range metadata {
		size += len(k) + len(v)
	}
	if size > maxMetadata {
		return badRequest("metadata has %d bytes, at most %d are accepted", size, maxMetadata)
	}
	for name, value := range env {
		if name == "" || strings.ContainsAny(name, "=\x00") {
			return badRequest("envVars: %q cannot be the name of an environment variable", clip(name))
		}
		if strings.ContainsRune(value, 0) {
			return badRequest("envVars.%s: the value contains a NUL byte", clip(name))
		}
	}
	return nil
}

// agree takes a flag that may come in two spellings.
func agree(name string, a *bool, alias string, b *bool) (*bool, error) {
	switch {
	case a == nil:
		return b, nil
	case b != nil && *a != *b:
		return nil, badRequest("%s is %t but %s is %t", name, *a, alias, *b)
	}
	return a, nil
}
