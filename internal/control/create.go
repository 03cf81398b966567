package control

import (
	"errors"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/go-json-experiment/json/jsontext"

	"github.com/moat-sandbox/moat/api"
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

func createV1(c *call) error { return c.create(guardV1) }
func createV2(c *call) error { return c.create(guardV2) }

func (c *call) create(guard guard) error {
	var body newSandbox
	if err := c.body(&body, false); err != nil {
		return err
	}
	// In E2B's order, so that of several mistakes the same one is reported.
	if err := c.checkTemplate(body.TemplateID); err != nil {
		return err
	}
	timeout, err := c.firstTimeout(body.Timeout)
	if err != nil {
		return err
	}
	if err := refuseUnserved("", body.Rest, createUnserved); err != nil {
		return err
	}
	if err := refuseMisplaced(body.Rest); err != nil {
		return err
	}
	spec := sandbox.Spec{
		Team:     c.team,
		Template: body.TemplateID,
		Timeout:  timeout,
		Metadata: body.Metadata,
		Env:      body.EnvVars,
	}
	if err := c.settleNetwork(&spec, &body, guard); err != nil {
		return err
	}
	if err := checkStrings(body.Metadata, body.EnvVars); err != nil {
		return err
	}
	return c.start(spec)
}

// settleNetwork fills in what the sandbox may reach and who may reach it.
func (c *call) settleNetwork(spec *sandbox.Spec, body *newSandbox, guard guard) (err error) {
	spec.InternetAccess, err = agree("allow_internet_access", body.AllowInternetAccess, "allowInternetAccess", body.CamelInternet)
	if err != nil {
		return err
	}
	said, err := body.Network.traffic("network.")
	if err != nil {
		return err
	}
	if spec.Ingress, err = said.ingress(); err != nil {
		return err
	}
	if spec.Network, err = body.Network.translate("network.", spec.InternetAccess); err != nil {
		return err
	}
	if _, err := c.compileNew(spec.Network); err != nil {
		return err
	}
	spec.Secure, err = guard(body.Secure, spec.Ingress.Private())
	return err
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

// agree takes a setting that may come in two spellings.
func agree[T comparable](name string, a *T, alias string, b *T) (*T, error) {
	switch {
	case a == nil:
		return b, nil
	case b != nil && *a != *b:
		return nil, badRequest("%s is %v but %s is %v", name, *a, alias, *b)
	}
	return a, nil
}
