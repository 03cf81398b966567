package secret

import (
	"bytes"
	"encoding/gob"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	jsonv2 "github.com/go-json-experiment/json"
)

const value = "hunter2-the-value"

// holder is what a secret usually sits in: a struct that does not know.
type holder struct {
	Exported String
	inside   String
	pointer  *String
}

func TestStringIsNeverShown(t *testing.T) {
	s := New(value)
	h := holder{Exported: s, inside: s, pointer: &s}
	shown := make(map[string]string)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p", "%T", "%08.3f"} {
		for name, x := range map[string]any{"value": s, "pointer": &s, "struct": h, "slice": []String{s}, "map": map[string]any{"k": h}} {
			shown[verb+" of a "+name] = fmt.Sprintf(verb, x)
		}
	}
	var text, lines, binary bytes.Buffer
	slog.New(slog.NewTextHandler(&text, nil)).Info("m", "s", s, "h", h, slog.Any("p", &h))
	slog.New(slog.NewJSONHandler(&lines, nil)).Info("m", "s", s, "h", h, slog.Any("p", &h))
	shown["slog text"], shown["slog JSON"] = text.String(), lines.String()
	v1, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	v2, err := jsonv2.Marshal(struct{ S String }{s})
	if err != nil {
		t.Fatal(err)
	}
	shown["encoding/json"], shown["json v2"] = string(v1), string(v2)
	if err := gob.NewEncoder(&binary).Encode(h); err == nil {
		t.Error("gob takes a secret")
	}
	shown["gob"] = binary.String()
	shown["error"] = fmt.Errorf("wrapped: %v", h).Error()

	hexed := fmt.Sprintf("%x", value)
	for how, out := range shown {
		if strings.Contains(out, value) || strings.Contains(strings.ToLower(out), hexed) {
			t.Errorf("%s shows the secret: %s", how, out)
		}
	}
	if s.Reveal() != value {
		t.Errorf("Reveal: %q", s.Reveal())
	}
}

func TestStringEqual(t *testing.T) {
	for _, test := range []struct {
		secret    String
		candidate string
		want      bool
	}{
		{New(value), value, true},
		{New(value), value + "x", false},
		{New(value), "", false},
		{New(""), "", false},
		{String{}, "", false},
		{String{}, "[secret]", false},
		{New(value), "[secret]", false},
	} {
		if got := test.secret.Equal(test.candidate); got != test.want {
			t.Errorf("%q equals %q: %t, want %t", test.secret.Reveal(), test.candidate, got, test.want)
		}
	}
	if !New("").Empty() || !(String{}).Empty() || New(value).Empty() || (String{}).Reveal() != "" {
		t.Error("Empty or Reveal of an empty secret is wrong")
	}
}

func TestHash(t *testing.T) {
	const abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad" // FIPS 180-2
	if got := Hash("abc"); got != abc {
		t.Errorf("got %s, want %s", got, abc)
	}
}

func TestMasterSurvivesARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "master")
	first, err := OpenMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 || info.Size() != masterBytes {
		t.Errorf("file has mode %v and %d bytes, want 0600 and %d", info.Mode(), info.Size(), masterBytes)
	}
	second, err := OpenMaster(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := OpenMaster(filepath.Join(t.TempDir(), "master"))
	if err != nil {
		t.Fatal(err)
	}
	token := first.Token("guest", "i1")
	if !token.Equal(second.Token("guest", "i1").Reveal()) {
		t.Error("the token changed with a restart")
	}
	if token.Equal(other.Token("guest", "i1").Reveal()) {
		t.Error("two installations derive the same token")
	}
	if raw, _ := os.ReadFile(path); strings.Contains(fmt.Sprintf("%+v %#v", first, &first), string(raw)) {
		t.Error("the master key is shown")
	}
}

func TestTokensAreUnrelated(t *testing.T) {
	m, err := OpenMaster(filepath.Join(t.TempDir(), "master"))
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^[0-9a-f]{64}$`)
	seen := make(map[string]string)
	// The pairs are chosen so that plain concatenation would mix them up.
	for _, in := range [][2]string{{"guest", "i1"}, {"guest", "i2"}, {"traffic", "i1"}, {"guest:i", "1"}, {"guest", ":i1"}, {"", "guest:i1"}, {"5:guest", "i1"}} {
		token := m.Token(in[0], in[1]).Reveal()
		if !form.MatchString(token) {
			t.Errorf("%v: token %q is not 64 hex digits", in, token)
		}
		if before, taken := seen[token]; taken {
			t.Errorf("%v has the token of %s", in, before)
		}
		seen[token] = fmt.Sprint(in)
	}
}

// A Master that nobody opened guards like any other: nobody knows its tokens.
func TestZeroMasterIsUnpredictable(t *testing.T) {
	form := regexp.MustCompile(`^[0-9a-f]{64}$`)
	seen := make(map[string]bool)
	for range 8 {
		token := Master{}.Token("guest", "i1").Reveal()
		if !form.MatchString(token) || seen[token] {
			t.Errorf("token %q is not a fresh one", token)
		}
		seen[token] = true
	}
	if opened, err := OpenMaster(filepath.Join(t.TempDir(), "master")); err != nil || opened.Empty() || !(Master{}).Empty() {
		t.Error("Empty does not tell a Master with a key from one without")
	}
}

func TestMasterRefusesDamage(t *testing.T) {
	dir := t.TempDir()
	for name, size := range map[string]int{"empty": 0, "short": masterBytes - 1, "long": masterBytes + 1} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenMaster(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want an error naming the file", name, err)
		}
	}
	if _, err := OpenMaster(filepath.Join(dir, "no such dir", "master")); err == nil {
		t.Error("opened below a missing directory")
	}
	if _, err := OpenMaster(dir); err == nil {
		t.Error("opened a directory")
	}
}
