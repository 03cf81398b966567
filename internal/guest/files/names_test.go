package files

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
)

func TestPartNames(t *testing.T) {
	for header, want := range map[string][2]string{
		`form-data; name="file"; filename="/a/b c/d.txt"`:        {"file", "/a/b c/d.txt"},
		`form-data; name=file; filename=plain.txt`:               {"file", "plain.txt"},
		`form-data; name="file"`:                                 {"file", ""},
		`form-data; name="file"; filename="../../up"`:            {"file", "../../up"},
		`form-data; name="file"; filename="C:\dir\f"`:            {"file", `C:\dir\f`},
		`form-data; name="file"; filename="a\"b"`:                {"file", `a"b`},
		`form-data; name="file"; filename="ünï/日本"`:              {"file", "ünï/日本"},
		`form-data; name="file"; filename*=UTF-8''%2Fa%2F%C3%BC`: {"file", "/a/ü"},
	} {
		field, file, err := partNames(header)
		if err != nil || field != want[0] || file != want[1] {
			t.Errorf("%s: %q, %q, %v; want %q", header, field, file, err, want)
		}
	}
	for _, header := range []string{"", "attachment; filename=x", `form-data; name="a"; name="b"`, `form-data; filename="`, ";"} {
		if field, file, err := partNames(header); err == nil {
			t.Errorf("%q: %q, %q, want an error", header, field, file)
		}
	}
}

func FuzzPartNames(f *testing.F) {
	f.Add(`form-data; name="file"; filename="/a/b.txt"`)
	f.Add(`form-data; name="file"; filename*=UTF-8''%2Fa`)
	f.Add(`form-data; name="x"; filename="a\"b\\c"`)
	f.Fuzz(func(t *testing.T, header string) {
		field, file, err := partNames(header)
		if err != nil {
			if field != "" || file != "" || strings.Contains(err.Error(), header) && len(header) > 10 {
				t.Errorf("%q: %q, %q, %v", header, field, file, err)
			}
			return
		}
		if !strings.HasPrefix(strings.ToLower(strings.TrimSpace(header)), "form-data") {
			t.Errorf("%q was accepted", header)
		}
	})
}

// What SDKs send for any path comes back as that path.
func FuzzPartNamesRoundTrip(f *testing.F) {
	f.Add("/home/user/a b.txt")
	f.Add("dir/ü;x=\"y\"")
	f.Fuzz(func(t *testing.T, path string) {
		if strings.ContainsAny(path, "\"\r\n\\\x00") {
			return // which clients escape, each in its own way
		}
		field, file, err := partNames(fmt.Sprintf(`form-data; name="file"; filename="%s"`, path))
		if err != nil || field != "file" || file != path {
			t.Errorf("%q: %q, %q, %v", path, field, file, err)
		}
	})
}

func TestWantsGzip(t *testing.T) {
	for header, want := range map[string]string{
		"": "plain", "gzip": "gzip", "gzip, deflate": "gzip", "deflate, br": "plain", "*": "plain", "GZIP;Q=0.5": "gzip",
		"identity": "plain", "identity;q=0.5, gzip;q=0.5": "gzip", "gzip;q=0.1, identity": "plain", "gzip;q=0": "plain",
		"identity;q=0": "refused", "*;q=0": "refused", "br, identity;q=0": "refused", "*;q=0, gzip": "gzip",
		"identity;q=0, *": "gzip", "identity;q=0, gzip;q=0, *": "refused", "gzip;q=2": "refused", "gzip;q=x": "refused",
	} {
		got := "plain"
		if gzipped, err := wantsGzip(http.Header{"Accept-Encoding": {header}}); err != nil {
			got = "refused"
		} else if gzipped {
			got = "gzip"
		}
		if got != want {
			t.Errorf("%q: %s, want %s", header, got, want)
		}
	}
}

func FuzzWantsGzip(f *testing.F) {
	f.Add("gzip;q=0.5, identity;q=0, *")
	f.Fuzz(func(t *testing.T, header string) {
		gzipped, err := wantsGzip(http.Header{"Accept-Encoding": {header}})
		if gzipped && (err != nil || !strings.Contains(strings.ToLower(header), "gzip") && !strings.Contains(header, "*")) {
			t.Errorf("%q: %v, %v", header, gzipped, err)
		}
	})
}
