package control

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// maxBody bounds a request's body, in bytes.
const maxBody = 16 << 20

// body reads the request's JSON object into target. Without a body target
// stays as it is when optional is true.
func (c *call) body(target any, optional bool) error {
	raw, err := c.readBody()
	if err != nil {
		return err
	}
	if len(bytes.TrimSpace(raw)) == 0 {
		if optional {
			return nil
		}
		return badRequest("Request body is empty: a JSON object is needed")
	}
	return decode(raw, target)
}

// sandboxBody is how a request about one sandbox begins: it reads the sandbox's
// id, and the body, in which nothing may be that target has no member for. Rest
// is where target keeps such things.
func (c *call) sandboxBody(target any, rest *map[string]jsontext.Value) error {
	if err := c.sandboxID(); err != nil {
		return err
	}
	if err := c.body(target, false); err != nil {
		return err
	}
	return refuseUnknown("", *rest)
}

func (c *call) readBody() ([]byte, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(c.w, c.r.Body, maxBody))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, &fault{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("Request body is larger than %d MiB", maxBody>>20)}
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &fault{status: http.StatusRequestTimeout, message: fmt.Sprintf("Request body did not arrive within %v", c.bodyTimeout)}
	case err != nil:
		return nil, badRequest("Request body could not be read: %v", err)
	}
	return raw, nil
}

// limitBody gives the body, if there is one, a deadline to arrive by. Where
// nobody reads it the server itself does, before it answers: a request without
// a key must not hold a connection for ever. Once the whole body has come
// net/http lifts the deadline.
func (c *call) limitBody() {
	if c.r.Body == http.NoBody {
		return
	}
	err := http.NewResponseController(c.w).SetReadDeadline(time.Now().Add(c.bodyTimeout))
	if err != nil && !errors.Is(err, http.ErrNotSupported) { // test recorders know no deadlines
		c.Logger.Debug("set deadline of request body", "error", err)
	}
}

// secretFields are not repeated in errors: environment variables are often keys.
var secretFields = []jsontext.Pointer{"/envVars", "/value"}

// decode reads one JSON object. Duplicate keys, wrong types and null inside a
// list or map of strings are errors that name the field.
func decode(raw []byte, target any) error {
	if jsontext.Value(raw).Kind() != '{' {
		if !jsontext.Value(raw).IsValid() {
			return badRequest("Request body is not valid JSON")
		}
		return badRequest("Request body must be a JSON object, got %s", kindName(jsontext.Value(raw).Kind()))
	}
	err := json.Unmarshal(raw, target, withoutNulls())
	var syntax *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return badRequest("Request body has a duplicate key: %s", fieldName(syntax.JSONPointer))
	case errors.As(err, &semantic):
		got := "a value of another type"
		secret := slices.ContainsFunc(secretFields, func(f jsontext.Pointer) bool { return f.Contains(semantic.JSONPointer) })
		if !secret {
			got = valueAt(raw, semantic.ByteOffset)
		}
		return badRequest("%s must be %s, got %s", fieldName(semantic.JSONPointer), describe(semantic.GoType), got)
	case errors.As(err, &syntax):
		return badRequest("Request body is not valid JSON: %v at byte %d", syntax.Err, syntax.ByteOffset)
	}
	return badRequest("Request body: %v", err)
}

// explainSecret says what is wrong with one member of a body of which nothing may
// be shown.
func explainSecret(field string, err error) error {
	var syntax *jsontext.SyntacticError
	var semantic *json.SemanticError
	switch {
	case errors.Is(err, json.ErrUnknownName) && errors.As(err, &semantic):
		return badRequest("%s is not a setting", join(field, semantic.JSONPointer))
	case errors.As(err, &semantic):
		return badRequest("%s must be %s, got a value of another type", join(field, semantic.JSONPointer), describe(semantic.GoType))
	case errors.Is(err, jsontext.ErrDuplicateName) && errors.As(err, &syntax):
		return badRequest("Request body has a duplicate key: %s", join(field, syntax.JSONPointer))
	}
	return badRequest("%s is not valid JSON", field)
}

// join writes a field within another one.
func join(field string, p jsontext.Pointer) string {
	inner := fieldName(p)
	if inner == "" || inner[0] == '[' {
		return field + inner
	}
	return field + "." + inner
}

// refuseNullString keeps null in a list or map of strings from becoming "".
// Optional strings are pointers and do not come here with null.
func refuseNullString(d *jsontext.Decoder, _ *string) error {
	if d.PeekKind() == 'n' {
		return &json.SemanticError{JSONKind: 'n', GoType: reflect.TypeFor[string]()}
	}
	return errors.ErrUnsupported // decode as usual
}

// refuseNullSecret is refuseNullString for values that no error shows.
func refuseNullSecret(d *jsontext.Decoder, _ *secretText) error {
	return refuseNullString(d, nil)
}

// withoutNulls are the unmarshalers for all bodies.
func withoutNulls() json.Options {
	return json.WithUnmarshalers(json.JoinUnmarshalers(
		json.UnmarshalFromFunc(refuseNullString), json.UnmarshalFromFunc(refuseNullSecret)))
}

// fieldName writes a JSON pointer as people do: network.allowOut[3].
func fieldName(p jsontext.Pointer) string {
	var b strings.Builder
	for token := range p.Tokens() {
		if _, err := strconv.ParseUint(token, 10, 31); err == nil {
			b.WriteString("[" + token + "]")
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('.')
		}
		b.WriteString(clip(token))
	}
	return b.String()
}

func kindName(k jsontext.Kind) string {
	switch k {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case '0':
		return "a number"
	}
	return k.String() // null, true, false
}

// valueAt is the JSON value that begins at an offset, shortened.
func valueAt(raw []byte, offset int64) string {
	if offset < 0 || offset > int64(len(raw)) {
		return "something else"
	}
	value, err := jsontext.NewDecoder(bytes.NewReader(raw[offset:])).ReadValue()
	if err != nil {
		return "something else"
	}
	if kind := value.Kind(); len(value) > len("[]") && (kind == '{' || kind == '[') {
		return kindName(kind) // credentials may be in it
	}
	return clip(string(value))
}

func describe(t reflect.Type) string {
	if t == nil {
		return "of another type"
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int64:
		return "a whole number"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}
