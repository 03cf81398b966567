package intercept

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestRootIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ca.pem")
	made, err := OpenRoot(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %v, %v", info.Mode(), err)
	}
	again, err := OpenRoot(path)
	if err != nil || !bytes.Equal(made.PEM(), again.PEM()) {
		t.Errorf("opened again it is another root, or %v", err)
	}
	if bytes.Contains(made.PEM(), []byte("PRIVATE")) {
		t.Error("what sandboxes get has the key in it")
	}
	if names, _ := filepath.Glob(path + ".*"); len(names) != 0 {
		t.Errorf("left behind: %v", names)
	}
	other, err := OpenRoot(path + "2")
	if err != nil || other.cert.Subject.String() == made.cert.Subject.String() {
		t.Errorf("two roots have the same name %v, or %v", made.cert.Subject, err)
	}
}

func TestRootThatCannotBeUsed(t *testing.T) {
	dir := t.TempDir()
	good := filepath.Join(dir, "good")
	if _, err := OpenRoot(good); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := OpenRoot(filepath.Join(dir, "other")); err != nil {
		t.Fatal(err)
	}
	otherText, _ := os.ReadFile(filepath.Join(dir, "other"))
	cut := func(text []byte) (cert, key string) {
		cert, key, _ = strings.Cut(string(text), "-----BEGIN PRIVATE")
		return cert, "-----BEGIN PRIVATE" + key
	}
	cert, key := cut(text)
	_, otherKey := cut(otherText)
	for what, x := range map[string]struct {
		text string
		mode os.FileMode
		want string
	}{
		"readable by others": {string(text), 0o640, "owner's alone"},
		"empty":              {"", 0o600, "does not begin with a certificate"},
		"no key":             {cert, 0o600, "no private key"},
		"key first":          {key + cert, 0o600, "does not begin with a certificate"},
		"another key":        {cert + otherKey, 0o600, "not that of the certificate"},
		"cut off":            {string(text[:len(text)-60]), 0o600, "no private key"},
	} {
		path := filepath.Join(dir, strings.ReplaceAll(what, " ", ""))
		if err := os.WriteFile(path, []byte(x.text), x.mode); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRoot(path); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: %v, want %q in it", what, err, x.want)
		}
		if now, _ := os.ReadFile(path); string(now) != x.text {
			t.Errorf("%s: the file was changed", what)
		}
	}
	if _, err := openRoot(good, time.Now().Add(rootLife+time.Hour)); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("expired: %v", err)
	}
	if _, err := OpenRoot(filepath.Join(dir, "nowhere", "ca.pem")); err == nil {
		t.Error("no directory, and no error")
	}
}

func FuzzParseRoot(f *testing.F) {
	path := filepath.Join(f.TempDir(), "ca.pem")
	if _, err := OpenRoot(path); err != nil {
		f.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		if r, err := parseRoot(text); err == nil && !r.key.PublicKey.Equal(r.cert.PublicKey) {
			t.Error("the key is not the certificate's")
		}
	})
}
