package gvisor

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"

	"github.com/erofs/go-erofs"
)

// pauseProgram is the name of the pause program in its image. It appears a
// second time as "guest", so that Probe can start the image as a template too.
const pauseProgram = "/pause"

// pauseLoad is where the pause program is mapped. The file is one segment that
// begins with the ELF header, so the code follows the two headers.
const pauseLoad = 0x400000

// pauseELF returns a static executable without any library or runtime, which
// keeps a prepared box as small as it can be. It does three things:
//
//	n := read(0, buf, 64)          // blocks until the box is started
//	if n > 0 {
//		r := sethostname(buf, n)   // the sandbox has one UTS namespace
//		write(1, &r, 1)            // 0 on success
//	}
//	for { pause() }
//
// It is padded to a whole page: EROFS writers put smaller files next to their
// inode, and gVisor cannot map such files.
func pauseELF() []byte {
	const ehsize, phsize, page = 64, 56, 4096
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a bytes.Buffer does not fail
	put(elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(pauseMachine), Version: uint32(elf.EV_CURRENT),
		Entry: pauseLoad + ehsize + phsize, Phoff: ehsize,
		Ehsize: ehsize, Phentsize: phsize, Phnum: 1, Shentsize: 64,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: pauseLoad, Paddr: pauseLoad, Filesz: page, Memsz: page, Align: page,
	})
	b.Write(pauseCode)
	return append(b.Bytes(), make([]byte, page-b.Len())...)
}

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
		if _, err := out.Write(pauseELF()); err != nil {
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
