package bench

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"
	"time"

	"github.com/moat-sandbox/moat/test/harness"
)

// imageName is a template made from a small directory, as opposed to base,
// which shows the host's own /usr.
const imageName = "small"

// libraries finds file names in the output of ldd.
var libraries = regexp.MustCompile(`/\S+`)

// addImage makes the image template of a few of the host's programs.
func addImage(b *testing.B, s *harness.Server) {
	root := filepath.Join(b.TempDir(), "root")
	for _, program := range []string{"/usr/bin/echo", "/usr/bin/cat", "/usr/bin/bash"} {
		copyInto(b, root, program)
		out, err := exec.Command("ldd", program).Output()
		if err != nil {
			b.Fatal(err)
		}
		for _, library := range libraries.FindAllString(string(out), -1) {
			copyInto(b, root, library)
		}
	}
	ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
	defer cancel()
	if _, err := s.Operator().AddTemplate(ctx, addRequest(root)); err != nil {
		b.Fatal(err)
	}
}

func copyInto(b *testing.B, root, path string) {
	from, err := os.Open(path)
	if err != nil {
		b.Fatal(err)
	}
	defer from.Close()
	to := filepath.Join(root, path)
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		b.Fatal(err)
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o755)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := io.Copy(out, from); err != nil {
		b.Fatal(err)
	}
	if err := out.Close(); err != nil {
		b.Fatal(err)
	}
}
