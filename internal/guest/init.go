package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"

	"github.com/moat-sandbox/moat/api"
	"github.com/moat-sandbox/moat/internal/guest/account"
	"github.com/moat-sandbox/moat/internal/guest/session"
	"github.com/moat-sandbox/moat/internal/guest/setup"
	"github.com/moat-sandbox/moat/internal/guest/wire"
)

// maxInit bounds the body of /init, certificates included.
const maxInit = 8 << 20

// init takes what the sandbox has to know. The first call is trusted, because
// nothing runs in the sandbox before it; later ones must know the token.
// Nothing changes unless all of it can be applied to the daemon.
func (s *Server) init(w http.ResponseWriter, r *http.Request) {
	var in api.GuestInit
	body := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit))
	body.DisallowUnknownFields()
	if err := body.Decode(&in); err != nil {
		wire.WriteError(w, http.StatusBadRequest, "the body is no valid init request: "+fault(err))
		return
	}
	s.initializing.Lock()
	defer s.initializing.Unlock()
	if !mayInit(s.sessions.Get(), r.Header.Get(session.TokenHeader), in.AccessToken) {
		wire.WriteError(w, http.StatusUnauthorized, unauthorized)
		return
	}
	if err := check(in); err != nil {
		wire.WriteError(w, http.StatusBadRequest, err.Error())
		return
	}
	if s.unfit != nil {
		wire.WriteError(w, http.StatusInternalServerError, s.unfit.Error())
		return
	}
	env, err := s.equip(in)
	if err != nil {
		s.config.Log.Error("init failed", "error", err)
		wire.WriteError(w, http.StatusInternalServerError, err.Error())
		return
	}
	s.sessions.Set(session.NewSettings(in.AccessToken, in.DefaultUser, in.DefaultWorkdir, env))
	w.Header().Set("X-Envd-Version", api.GuestVersion)
	w.WriteHeader(http.StatusNoContent)
}

// mayInit decides who may call /init: whoever comes first, then whoever sends
// the current token in the header, or else again as the token to set.
func mayInit(current *session.Settings, header, body string) bool {
	if current == nil {
		return true
	}
	if header != "" {
		return current.Authorized(header)
	}
	return current.Authorized(body)
}

// fault describes a decoding error without repeating any of the body.
func fault(err error) string {
	var wrongType *json.UnmarshalTypeError
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &wrongType):
		return fmt.Sprintf("%s must be a %s", wrongType.Field, wrongType.Type)
	case errors.As(err, &syntax):
		return fmt.Sprintf("malformed JSON at byte %d", syntax.Offset)
	case strings.HasPrefix(err.Error(), "json: unknown field"):
		return strings.TrimPrefix(err.Error(), "json: ")
	}
	return "it is incomplete or too large"
}

// check refuses what would end up as something else in a file or environment.
func check(in api.GuestInit) error {
	for name, value := range in.EnvVars {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(value, 0) {
			return fmt.Errorf("envVars: %q is no usable name or has a value with a NUL byte", name)
		}
	}
	if err := setup.CheckWord("sandboxID", in.SandboxID); err != nil {
		return err
	}
	if err := setup.CheckWord("templateID", in.TemplateID); err != nil {
		return err
	}
	if strings.ContainsRune(in.DefaultWorkdir, 0) {
		return errors.New("defaultWorkdir contains a NUL byte")
	}
	if in.DefaultUser == "" {
		return nil
	}
	book, err := account.Open()
	if err != nil {
		return err
	}
	if _, err := book.User(in.DefaultUser); err != nil {
		return fmt.Errorf("defaultUser: %w", err)
	}
	return nil
}

// equip writes the sandbox's files and returns the environment of commands.
func (s *Server) equip(in api.GuestInit) (map[string]string, error) {
	env := map[string]string{}
	maps.Copy(env, s.common)
	maps.Copy(env, in.EnvVars)
	env["E2B_SANDBOX"] = "true"
	marks := map[string]string{".E2B_SANDBOX": "true"}
	if in.SandboxID != "" {
		env["E2B_SANDBOX_ID"], marks[".E2B_SANDBOX_ID"] = in.SandboxID, in.SandboxID
	}
	if in.TemplateID != "" {
		env["E2B_TEMPLATE_ID"], marks[".E2B_TEMPLATE_ID"] = in.TemplateID, in.TemplateID
	}
	for name, content := range marks {
		if err := setup.Disk(s.config.Root).Write("run/e2b/"+name, content); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	return env, nil
}
