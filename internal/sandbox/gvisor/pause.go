package gvisor

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofs/go-erofs"
)

// pauseProgram is the name of the pause program in its image. It appears a
// second time as "guest", so that Probe can start the image as a template too.
const pauseProgram = "/pause"

// pauseProgramELF is what a prepared box runs:
//
//	n = read(0, buf, 64);              // blocks until the box is started
//	if (n > 0) {
//		r = sethostname(buf, n);       // all of a box has one host name
//		write(1, &r, 1);               // 0 on success
//	}
//	for (;;) pause();
func pauseProgramELF() []byte { return program(pauseCode) }

// writePauseImage writes the root filesystem of prepared boxes: the pause
// program and the directories that a read-only root must offer as mount points.
// Boxes that already run keep the file they have opened.
func writePauseImage(path string) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".")
	if err != nil {
		return fmt.Errorf("create pause image: %w", err)
	}
	defer os.Remove(tmp.Name()) // fails harmlessly after the rename
	err = fillPauseImage(tmp)
	if err1 := tmp.Close(); err == nil {
		err = err1
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write pause image: %w", err)
	}
	return nil
}

func fillPauseImage(f *os.File) error {
	w := erofs.Create(f, erofs.WithTempDir(filepath.Dir(f.Name())))
	for _, dir := range []string{"/dev", "/proc", "/sys", "/tmp"} {
		if err := w.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{pauseProgram, "/guest"} {
		out, err := w.Create(name)
		if err != nil {
			return err
		}
		if _, err := out.Write(pauseProgramELF()); err != nil {
			return err
		}
		if err := out.Chmod(0o755); err != nil {
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
	return w.Close()
}
