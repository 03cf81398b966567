package dns

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseResolvConf(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"", "[]"},
		{"nameserver 1.1.1.1", "[1.1.1.1:53]"},
		{"# nameserver 9.9.9.9\nsearch corp.example\nnameserver\t8.8.8.8  # public\nnameserver 2001:4860:4860::8888\n", "[8.8.8.8:53 [2001:4860:4860::8888]:53]"},
		{"nameserver fe80::1%eth0\r\nnameserver dns.google\nnameserver\noptions edns0", "[[fe80::1%eth0]:53]"},
		{"nameserver 1.1.1.1\nnameserver 1.1.1.2\nnameserver 1.1.1.3\nnameserver 1.1.1.4", "[1.1.1.1:53 1.1.1.2:53 1.1.1.3:53]"},
	} {
		if got := fmt.Sprint(parseResolvConf(test.text)); got != test.want {
			t.Errorf("%q: got %s, want %s", test.text, got, test.want)
		}
	}
}

func TestResolvConfIsReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path+".new", []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 1.1.1.1\n")
	var log bytes.Buffer
	conf, err := newResolvConf(path, slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string, warnings int) {
		t.Helper()
		for range 2 {
			if got := fmt.Sprint(conf.servers()); got != want {
				t.Errorf("got %s, want %s", got, want)
			}
		}
		if got := strings.Count(log.String(), "\n"); got != warnings {
			t.Errorf("%d warnings, want %d:\n%s", got, warnings, log.String())
		}
	}
	expect("[1.1.1.1:53]", 0)
	write("nameserver 8.8.8.8\n") // of the same length
	expect("[8.8.8.8:53]", 0)
	write("# being written\n")
	expect("[8.8.8.8:53]", 1)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	expect("[8.8.8.8:53]", 2)
	write("nameserver 9.9.9.9\n")
	expect("[9.9.9.9:53]", 2)
}
