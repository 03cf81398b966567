package link

import (
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/internal/secret"
)

const (
	box  = "iabcdefghijklmnopqrst"
	port = 8080
)

var key = secret.New(strings.Repeat("k1", 32))

func TestNew(t *testing.T) {
	parameter, g, err := New(key, box, port, 15*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	value, ok := strings.CutPrefix(parameter, Parameter+"=")
	if !ok {
		t.Fatalf("parameter %q", parameter)
	}
	now := time.Now()
	if left := g.Expires.Sub(now); left > 15*time.Minute || left < 15*time.Minute-2*time.Second {
		t.Errorf("expires in %v", left)
	}
	got, err := URL.Verify(key, box, port, value, now)
	if err != nil || !got.Expires.Equal(g.Expires) || got.Sandbox != box || got.Port != port {
		t.Errorf("got %+v, %v, want %+v", got, err, g)
	}
	if strings.Trim(value, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_.") != "" {
		t.Errorf("%q needs quoting", value)
	}
}

func TestNewRefuses(t *testing.T) {
	for what, x := range map[string]struct {
		key  secret.String
		port uint16
		life time.Duration
		want string
	}{
		"no key":   {secret.String{}, port, time.Minute, "no key"},
		"port 0":   {key, 0, time.Minute, "port 0"},
		"no life":  {key, port, 0, "life 0s"},
		"the past": {key, port, -time.Minute, "life -1m0s"},
		"too long": {key, port, MaxLife + time.Second, "not between"},
	} {
		if got, _, err := New(x.key, box, x.port, x.life); err == nil || got != "" || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: got %q, %v", what, got, err)
		}
	}
}

func TestVerify(t *testing.T) {
	expires := time.Unix(1_800_000_000, 0)
	value := URL.Sign(key, Grant{Sandbox: box, Port: port, Expires: expires})
	before := expires.Add(-time.Second)
	text, mac, _ := strings.Cut(value, ".")
	other := secret.New(strings.Repeat("k2", 32))
	for what, x := range map[string]struct {
		use   Use
		key   secret.String
		box   string
		port  uint16
		value string
		now   time.Time
		want  error
	}{
		"right":                 {URL, key, box, port, value, before, nil},
		"at its end":            {URL, key, box, port, value, expires, ErrExpired},
		"long after":            {URL, key, box, port, value, expires.Add(time.Hour), ErrExpired},
		"other key":             {URL, other, box, port, value, before, ErrInvalid},
		"other key, expired":    {URL, other, box, port, value, expires, ErrInvalid},
		"no key":                {URL, secret.String{}, box, port, value, before, ErrInvalid},
		"empty key":             {URL, secret.New(""), box, port, URL.Sign(secret.New(""), Grant{box, port, expires}), before, ErrInvalid},
		"other sandbox":         {URL, key, "i" + box, port, value, before, ErrInvalid},
		"other port":            {URL, key, box, port + 1, value, before, ErrInvalid},
		"as a cookie":           {Cookie, key, box, port, value, before, ErrInvalid},
		"cookie as a link":      {URL, key, box, port, Cookie.Sign(key, Grant{box, port, expires}), before, ErrInvalid},
		"later expiry":          {URL, key, box, port, "1800000001." + mac, before, ErrInvalid},
		"another spelling":      {URL, key, box, port, "0" + value, before, ErrInvalid},
		"signed expiry":         {URL, key, box, port, "+" + value, before, ErrInvalid},
		"shortened MAC":         {URL, key, box, port, value[:len(value)-1], before, ErrInvalid},
		"lengthened MAC":        {URL, key, box, port, value + "A", before, ErrInvalid},
		"last bits of the MAC":  {URL, key, box, port, value[:len(value)-1] + string(value[len(value)-1]+1), before, ErrInvalid},
		"no MAC":                {URL, key, box, port, text + ".", before, ErrInvalid},
		"only the expiry":       {URL, key, box, port, text, before, ErrInvalid},
		"nothing":               {URL, key, box, port, "", before, ErrInvalid},
		"text":                  {URL, key, box, port, "x." + mac, before, ErrInvalid},
		"very long":             {URL, key, box, port, strings.Repeat(value, 1000), before, ErrInvalid},
		"beyond what fits":      {URL, key, box, port, "99999999999999999999." + mac, before, ErrInvalid},
		"the token as the link": {URL, key, box, port, key.Reveal(), before, ErrInvalid},
	} {
		if _, err := x.use.Verify(x.key, x.box, x.port, x.value, x.now); !errors.Is(err, x.want) || (err == nil) != (x.want == nil) {
			t.Errorf("%s: got %v, want %v", what, err, x.want)
		}
	}
}

// FuzzVerify: nothing but what Sign gives for just this grant is valid.
func FuzzVerify(f *testing.F) {
	expires := time.Unix(1_800_000_000, 0)
	value := URL.Sign(key, Grant{Sandbox: box, Port: port, Expires: expires})
	f.Add(value)
	f.Add("1800000000.")
	f.Add(strconv.FormatInt(expires.Unix(), 10) + ".AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")
	f.Fuzz(func(t *testing.T, candidate string) {
		if _, err := URL.Verify(key, box, port, candidate, expires.Add(-1)); (err == nil) != (candidate == value) {
			t.Fatalf("%q: %v", candidate, err)
		}
	})
}
