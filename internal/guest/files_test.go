package guest

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/api"
	pb "github.com/moat-sandbox/moat/api/filesystem"
)

// form builds a multipart body; each part is a file name and its content.
func form(t *testing.T, field string, parts ...[2]string) (body io.Reader, contentType string) {
	t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for _, p := range parts {
		disposition := fmt.Sprintf(`form-data; name="%s"`, field)
		if p[0] != "" {
			disposition += fmt.Sprintf(`; filename="%s"`, p[0])
		}
		part, err := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {disposition}})
		if err == nil {
			_, err = io.WriteString(part, p[1])
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b, w.FormDataContentType()
}

func filesURL(params ...string) string {
	q := url.Values{}
	for i := 0; i < len(params); i += 2 {
		q.Set(params[i], params[i+1])
	}
	return "/files?" + q.Encode()
}

func (d *daemon) expect(res *http.Response, status int, body string) {
	d.t.Helper()
	if got := read(d.t, res); res.StatusCode != status || got != body {
		d.t.Errorf("answer = %d %s, want %d %s", res.StatusCode, got, status, body)
	}
}

func TestUploadForm(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	body, kind := form(t, "file", [2]string{dir + "/new/dir/a.txt", "A"}, [2]string{"relative/b.txt", "B"})
	res := d.do("POST", "/files", body, map[string]string{"Content-Type": kind})
	d.expect(res, 200, fmt.Sprintf(`[{"name":"a.txt","path":"%[1]s/new/dir/a.txt","type":"file"},{"name":"b.txt","path":"%[1]s/relative/b.txt","type":"file"}]`, dir))
	for name, content := range map[string]string{"new/dir/a.txt": "A", "relative/b.txt": "B"} {
		path := filepath.Join(dir, name)
		got, err := os.ReadFile(path)
		if err != nil || string(got) != content {
			t.Errorf("%s holds %q, %v", name, got, err)
		}
		for _, p := range []string{path, filepath.Dir(path)} {
			info, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if stat := info.Sys().(*syscall.Stat_t); stat.Uid != 1 || stat.Gid != 1 || info.Mode().Perm()&0o022 != 0 {
				t.Errorf("%s is %v of %d:%d, want it to be the user's", p, info.Mode(), stat.Uid, stat.Gid)
			}
		}
	}
}

func TestUploadPathOfTheQueryWins(t *testing.T) {
	dir := openDir(t, 0, 0)
	d := ready(t, api.GuestInit{})
	for name, part := range map[string][2]string{"plain field": {"", "x"}, "other name": {"/elsewhere", "x"}} {
		body, kind := form(t, "file", part)
		res := d.do("POST", filesURL("path", dir+"/p"), body, map[string]string{"Content-Type": kind})
		if got := read(t, res); res.StatusCode != 200 {
			t.Errorf("%s: %d %s", name, res.StatusCode, got)
		}
		if got, err := os.ReadFile(dir + "/p"); err != nil || string(got) != "x" {
			t.Errorf("%s: file holds %q, %v", name, got, err)
		}
	}
}

func TestUploadOctets(t *testing.T) {
	dir := openDir(t, 0, 0)
	d := ready(t, api.GuestInit{})
	octets := map[string]string{"Content-Type": "application/octet-stream"}
	res := d.do("POST", filesURL("path", dir+"/plain"), strings.NewReader("long content"), octets)
	d.expect(res, 200, fmt.Sprintf(`[{"name":"plain","path":"%s/plain","type":"file"}]`, dir))
	// A second upload replaces the whole file.
	d.do("POST", filesURL("path", dir+"/plain"), strings.NewReader("short"), octets)
	if got, err := os.ReadFile(dir + "/plain"); err != nil || string(got) != "short" {
		t.Errorf("file holds %q, %v", got, err)
	}
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	if _, err := io.WriteString(z, strings.Repeat("z", 100000)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	octets["Content-Encoding"] = "gzip"
	d.do("POST", filesURL("path", dir+"/packed"), &packed, octets)
	if got, err := os.ReadFile(dir + "/packed"); err != nil || string(got) != strings.Repeat("z", 100000) {
		t.Errorf("file holds %d bytes, %v", len(got), err)
	}
}

func TestUploadRefusals(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon"})
	if err := syscall.Mkfifo(dir+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	upload := func(url, kind, encoding, body string) *http.Response {
		return d.do("POST", url, strings.NewReader(body), map[string]string{"Content-Type": kind, "Content-Encoding": encoding})
	}
	const octets = "application/octet-stream"
	multi := func(field string, parts ...[2]string) *http.Response {
		body, kind := form(t, field, parts...)
		return d.do("POST", "/files", body, map[string]string{"Content-Type": kind})
	}
	for name, c := range map[string]struct {
		res    *http.Response
		status int
		text   string
	}{
		"no type":        {upload(filesURL("path", dir+"/x"), "", "", ""), 400, "Content-Type"},
		"other type":     {upload(filesURL("path", dir+"/x"), "text/plain", "", ""), 400, "text/plain"},
		"no boundary":    {upload("/files", "multipart/form-data", "", ""), 400, "boundary"},
		"broken form":    {upload("/files", "multipart/form-data; boundary=b", "", "--b\r\nContent-"), 400, "malformed"},
		"no path":        {upload("/files", octets, "", ""), 400, "path"},
		"bad encoding":   {upload(filesURL("path", dir+"/x"), octets, "br", ""), 400, `\"br\"`},
		"not gzip":       {upload(filesURL("path", dir+"/x"), octets, "gzip", "plain"), 400, "gzip"},
		"a directory":    {upload(filesURL("path", dir), octets, "", ""), 400, "path is a directory: " + dir},
		"slash":          {upload(filesURL("path", dir+"/x/"), octets, "", ""), 400, "path is a directory"},
		"below a file":   {upload(filesURL("path", "/etc/passwd/x"), octets, "", ""), 400, "not a directory"},
		"a pipe":         {upload(filesURL("path", dir+"/fifo"), octets, "", ""), 400, "not a regular file"},
		"NUL":            {upload(filesURL("path", dir+"/x\x00y"), octets, "", ""), 400, "NUL"},
		"not allowed":    {upload(filesURL("path", "/etc/evil"), octets, "", ""), 403, "permission denied"},
		"no directory":   {upload(filesURL("path", "/evil/x"), octets, "", ""), 403, "permission denied"},
		"nobody's":       {upload(filesURL("path", "/etc/passwd"), octets, "", ""), 403, "permission denied"},
		"unknown user":   {upload(filesURL("path", dir+"/x", "username", "ghost"), octets, "", ""), 401, "error looking up user 'ghost'"},
		"two paths":      {upload("/files?path=a&path=b", octets, "", ""), 400, "2 times"},
		"broken query":   {upload("/files?path=%zz", octets, "", ""), 400, "query"},
		"other field":    {multi("files", [2]string{dir + "/x", ""}), 400, "files"},
		"no file name":   {multi("file", [2]string{"", ""}), 400, "file name"},
		"the same twice": {multi("file", [2]string{dir + "/1", ""}, [2]string{dir + "/./1", ""}), 400, "multiple files to the same path '" + dir + "/1'"},
	} {
		if got := read(t, c.res); c.res.StatusCode != c.status || !strings.Contains(got, c.text) || !strings.HasPrefix(got, fmt.Sprintf(`{"code":%d,"message":"`, c.status)) {
			t.Errorf("%s: answer = %d %s, want %d with %q", name, c.res.StatusCode, got, c.status, c.text)
		}
	}
	for _, path := range []string{"/etc/evil", "/evil", dir + "/x"} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was made", path)
		}
	}
}

func TestUploadToAFullDisk(t *testing.T) {
	dir := openDir(t, 0, 0)
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	d := ready(t, api.GuestInit{})
	res := d.do("POST", filesURL("path", dir+"/big"), bytes.NewReader(make([]byte, 1<<20)), map[string]string{"Content-Type": "application/octet-stream"})
	d.expect(res, 507, fmt.Sprintf(`{"code":507,"message":"not enough disk space to write '%s/big'"}`, dir))
}

func TestMetadata(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon"})
	path := dir + "/f"
	put := func(headers map[string]string) *http.Response {
		headers["Content-Type"] = "application/octet-stream"
		return d.do("POST", filesURL("path", path), strings.NewReader("x"), headers)
	}
	res := put(map[string]string{"X-Metadata-Author": "me", "X-Metadata-purpose": "upload"})
	d.expect(res, 200, fmt.Sprintf(`[{"name":"f","path":"%s","type":"file","metadata":{"author":"me","purpose":"upload"}}]`, path))
	if err := syscall.Setxattr(path, "user.e2b.other", []byte("by hand"), 0); err != nil {
		t.Fatal(err)
	}
	stat := func() map[string]string {
		res, err := d.filesystem(nil).Stat(t.Context(), &pb.StatRequest{Path: path})
		if err != nil {
			t.Fatal(err)
		}
		return res.GetEntry().GetMetadata()
	}
	if got := stat(); len(got) != 3 || got["author"] != "me" || got["purpose"] != "upload" || got["other"] != "by hand" {
		t.Errorf("metadata = %v", got)
	}
	put(map[string]string{"X-Metadata-Only": "this"})
	if got := stat(); len(got) != 1 || got["only"] != "this" {
		t.Errorf("after another upload metadata = %v", got)
	}
	put(map[string]string{})
	if got := stat(); got != nil {
		t.Errorf("after an upload without any metadata = %v", got)
	}
	for name, headers := range map[string]map[string]string{
		"long key":  {"X-Metadata-" + strings.Repeat("k", 300): "v"},
		"not ASCII": {"X-Metadata-K": "ü"},
		"too much":  {"X-Metadata-K": strings.Repeat("v", 5000)},
	} {
		if res := put(headers); res.StatusCode != 400 {
			t.Errorf("%s: %d %s", name, res.StatusCode, read(t, res))
		}
	}
}

func TestDownload(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	content := strings.Repeat("0123456789", 1000)
	for name, data := range map[string]string{"f.txt": content, "empty": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	get := func(path string, headers map[string]string) *http.Response {
		return d.do("GET", filesURL("path", path), nil, headers)
	}
	res := get("f.txt", nil)
	d.expect(res, 200, content)
	for name, want := range map[string]string{
		"Content-Length": "10000", "Content-Disposition": "inline; filename=f.txt", "Vary": "Accept-Encoding", "Accept-Ranges": "bytes",
	} {
		if got := res.Header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	res = get("empty", map[string]string{"Accept-Encoding": "gzip"})
	if d.expect(res, 200, ""); res.Header.Get("Content-Length") != "0" {
		t.Errorf("empty file: Content-Length %q", res.Header.Get("Content-Length"))
	}
	res = get("f.txt", map[string]string{"Accept-Encoding": "gzip, deflate"})
	z, err := gzip.NewReader(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || string(got) != content || res.Header.Get("Content-Encoding") != "gzip" {
		t.Errorf("gzip: %d bytes, %v, %v", len(got), err, res.Header)
	}
	d.expect(get("f.txt", map[string]string{"Range": "bytes=5-7", "Accept-Encoding": "gzip"}), 206, "567")
	d.expect(get("f.txt", map[string]string{"If-Modified-Since": time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), "Accept-Encoding": "gzip"}), 304, "")
	res = get("/proc/self/status", nil)
	if got := read(t, res); res.StatusCode != 200 || !strings.HasPrefix(got, "Name:") {
		t.Errorf("a file whose size says nothing: %d %.50q", res.StatusCode, got)
	}
}

func TestDownloadRefusals(t *testing.T) {
	dir := openDir(t, 1, 1)
	d := ready(t, api.GuestInit{DefaultUser: "daemon", DefaultWorkdir: dir})
	if err := syscall.Mkfifo(dir+"/fifo", 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("loop", dir+"/loop"); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		url, accept string
		status      int
		message     string
	}{
		"missing":   {filesURL("path", "no"), "", 404, "path '" + dir + "/no' does not exist"},
		"beyond":    {filesURL("path", "/etc/passwd/no"), "", 404, "path '/etc/passwd/no' does not exist"},
		"directory": {filesURL("path", "."), "", 400, "path '" + dir + "' is a directory"},
		"pipe":      {filesURL("path", "fifo"), "", 400, "path '" + dir + "/fifo' is not a regular file"},
		"device":    {filesURL("path", "/dev/zero"), "", 400, "path '/dev/zero' is not a regular file"},
		"secret":    {filesURL("path", "/etc/shadow"), "", 403, "open /etc/shadow: permission denied"},
		"loop":      {filesURL("path", "loop"), "", 400, "stat " + dir + "/loop: too many levels of symbolic links"},
		"user":      {filesURL("path", "f", "username", "ghost"), "", 401, "error looking up user 'ghost': unknown user ghost"},
		"encoding":  {filesURL("path", "/etc/passwd"), "br, identity;q=0", 406, "no acceptable encoding: only gzip and identity are supported"},
		"memory":    {filesURL("path", "/proc/self/mem"), "", 403, "open /proc/self/mem: permission denied"},
	} {
		res := d.do("GET", c.url, nil, map[string]string{"Accept-Encoding": c.accept})
		if want := fmt.Sprintf(`{"code":%d,"message":"%s"}`, c.status, c.message); true {
			if got := read(t, res); got != want || res.StatusCode != c.status {
				t.Errorf("%s: answer = %d %s, want %s", name, res.StatusCode, got, want)
			}
		}
	}
	if res := d.do("DELETE", "/files", nil, nil); res.StatusCode != 405 {
		t.Errorf("DELETE: %d", res.StatusCode)
	}
}
