package template

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/zstd"

	"github.com/moat-sandbox/moat/internal/sandbox"
)

// newRegistry serves a registry on loopback and returns its host. spoil may
// answer a request in its place and then returns true.
func newRegistry(t *testing.T, serve func(http.Handler) *httptest.Server, spoil func(http.ResponseWriter, *http.Request) bool) string {
	t.Helper()
	real := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	server := serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if spoil == nil || !spoil(w, r) {
			real.ServeHTTP(w, r)
		}
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(server.Close)
	_, host, _ := strings.Cut(server.URL, "://")
	return host
}

// layer makes a gzipped layer of files, name and content in turn.
func layer(t *testing.T, files ...string) v1.Layer {
	t.Helper()
	data := tarOf(t, files...)
	l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func image(t *testing.T, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(empty.Image, layers...)
	if err == nil {
		img, err = mutate.ConfigFile(img, withConfig(t, img, config))
	}
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func withConfig(t *testing.T, img v1.Image, config v1.Config) *v1.ConfigFile {
	t.Helper()
	file, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	file = file.DeepCopy()
	file.Config, file.OS, file.Architecture = config, "linux", runtime.GOARCH
	return file
}

func push(t *testing.T, ref string, img v1.Image) string {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err == nil {
		err = remote.Write(parsed, img)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ref
}

func TestAddImage(t *testing.T) {
	r := newRig(t)
	host := newRegistry(t, httptest.NewServer, nil)
	ref := push(t, host+"/tools/app:v1", image(t,
		v1.Config{Env: []string{"PATH=/app/bin", "A=b"}, User: "web:www", WorkingDir: "/app"},
		layer(t, "bin/sh", "shell", "etc/passwd", "root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n", "app/old", "1", "app/keep", "2"),
		layer(t, "app/.wh.old", "", "app/keep", "changed", "lib", "->usr/lib"),
		layer(t, "lib/new.so", "3"),
	))
	got := r.must(r.AddImage(ctx, ref, []string{"app"}, true))
	if !slices.Equal(got.Env, []string{"PATH=/app/bin", "A=b"}) || got.User != "web" || got.Workdir != "/app" || got.Source != "image "+host+"/tools/app:v1" {
		t.Errorf("template %+v", got)
	}
	r.holds(got, "app/keep", "changed")
	r.holds(got, "usr/lib/new.so", "3")
	if _, err := fs.Stat(r.image(got), "app/old"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("what a layer removed is there: %v", err)
	}
	if found := r.must(r.Resolve(ctx, "app")); found.ID != got.ID {
		t.Errorf("app is %s", found.ID)
	}
}

func TestAddImageOfManyPlatforms(t *testing.T) {
	r := newRig(t)
	host := newRegistry(t, httptest.NewServer, nil)
	index := func(arch string) v1.ImageIndex {
		return mutate.AppendManifests(empty.Index,
			mutate.IndexAddendum{Add: image(t, v1.Config{}, layer(t, "bin/sh", "other")), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "sparc"}}},
			mutate.IndexAddendum{Add: image(t, v1.Config{}, layer(t, "bin/sh", "ours")), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	for arch, ref := range map[string]string{runtime.GOARCH: host + "/multi:ours", "mips": host + "/multi:none"} {
		parsed, err := name.ParseReference(ref, name.Insecure)
		if err == nil {
			err = remote.WriteIndex(parsed, index(arch))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	r.holds(r.must(r.AddImage(ctx, host+"/multi:ours", []string{"multi"}, true)), "bin/sh", "ours")
	if _, err := r.AddImage(ctx, host+"/multi:none", []string{"none"}, true); err == nil {
		t.Error("an image for other machines only was accepted")
	}
}

func TestAddImageWithZstdLayers(t *testing.T) {
	r := newRig(t)
	host := newRegistry(t, httptest.NewServer, nil)
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := z.Write(tarOf(t, "bin/sh", "packed")); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	ref := push(t, host+"/zstd:v1", image(t, v1.Config{}, static.NewLayer(packed.Bytes(), types.OCILayerZStd)))
	r.holds(r.must(r.AddImage(ctx, ref, []string{"zstd"}, true)), "bin/sh", "packed")
}

// TestAddImageOverTLS: only with insecure is a certificate of nobody taken.
func TestAddImageOverTLS(t *testing.T) {
	r := newRig(t)
	var server *httptest.Server
	host := newRegistry(t, func(h http.Handler) *httptest.Server {
		server = httptest.NewTLSServer(h)
		return server
	}, nil)
	parsed, err := name.ParseReference(host + "/tls:v1")
	if err == nil {
		err = remote.Write(parsed, image(t, v1.Config{}, layer(t, "bin/sh", "x")), remote.WithTransport(server.Client().Transport))
	}
	if err != nil {
		t.Fatal(err)
	}
	r.must(r.AddImage(ctx, host+"/tls:v1", []string{"tls"}, true))
	if _, err := r.AddImage(ctx, host+"/tls:v1", []string{"tls"}, false); err == nil {
		t.Error("a certificate of nobody was accepted")
	}
}

func TestAddImageRefuses(t *testing.T) {
	r := newRig(t)
	damage := func(marker string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, q *http.Request) bool {
			if q.Method != http.MethodGet || !strings.Contains(q.URL.Path, marker) {
				return false
			}
			w.Header().Set("Content-Type", "application/octet-stream")
			_, err := w.Write(tarOf(t, "bin/sh", "not what was pushed"))
			return err == nil
		}
	}
	sound := newRegistry(t, httptest.NewServer, nil)
	tampered := newRegistry(t, httptest.NewServer, damage("/blobs/"))
	broken := newRegistry(t, httptest.NewServer, func(w http.ResponseWriter, q *http.Request) bool {
		if q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/manifests/") {
			http.Error(w, "no", http.StatusForbidden)
			return true
		}
		return false
	})
	foreign := layer(t, "bin/sh", "x")
	withURL, err := mutate.Append(empty.Image, mutate.Addendum{Layer: foreign, URLs: []string{"http://127.0.0.1:1/secret"}})
	if err != nil {
		t.Fatal(err)
	}
	plain := image(t, v1.Config{}, layer(t, "bin/sh", "x"))
	cases := map[string]string{
		"no reference":      "",
		"not a reference":   "UPPER CASE",
		"unknown image":     sound + "/none:v1",
		"no registry there": "127.0.0.1:1/none:v1",
		"tampered layer":    push(t, tampered+"/app:v1", plain),
		"refusing registry": push(t, broken+"/app:v1", plain),
		"no layers":         push(t, sound+"/empty:v1", empty.Image),
		"climbing layer":    push(t, sound+"/climb:v1", image(t, v1.Config{}, layer(t, "../../etc/cron.d/x", "x"))),
		"not a layer":       push(t, sound+"/junk:v1", image(t, v1.Config{}, static.NewLayer([]byte(strings.Repeat("junk", 999)), types.DockerLayer))),
		"unknown user":      push(t, sound+"/ghost:v1", image(t, v1.Config{User: "ghost"}, layer(t, "bin/sh", "x"))),
		"layer elsewhere":   push(t, sound+"/foreign:v1", withURL),
	}
	for what, ref := range cases {
		t.Run(what, func(t *testing.T) {
			short, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if made, err := r.AddImage(short, ref, []string{"x"}, true); err == nil {
				t.Errorf("accepted as %+v", made)
			}
		})
	}
	if left := r.files(); len(left) != 0 {
		t.Errorf("left behind: %q", left)
	}
	if _, err := r.Resolve(ctx, "x"); !errors.Is(err, sandbox.ErrTemplateNotFound) {
		t.Errorf("x: %v", err)
	}
}
