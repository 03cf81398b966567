package gvisor

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// A box has two helpers so small that a Go program would be a hundred times
// their size and cost. They are machine code (program_<arch>.go), which the
// comments below state in C.

// program returns a static executable with the given code. It is one segment
// that begins with the ELF header, and is padded to a whole page: EROFS writers
// put smaller files next to their inode, and gVisor cannot map such files.
func program(code []byte) []byte {
	const ehsize, phsize, page, load = 64, 56, 4096, 0x400000
	var b bytes.Buffer
	put := func(v any) { _ = binary.Write(&b, binary.LittleEndian, v) } // a bytes.Buffer does not fail
	put(elf.Header64{
		Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)},
		Type:  uint16(elf.ET_EXEC), Machine: uint16(machine), Version: uint32(elf.EV_CURRENT),
		Entry: load + ehsize + phsize, Phoff: ehsize,
		Ehsize: ehsize, Phentsize: phsize, Phnum: 1, Shentsize: 64,
	})
	put(elf.Prog64{
		Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X),
		Vaddr: load, Paddr: load, Filesz: page, Memsz: page, Align: page,
	})
	b.Write(code)
	return append(b.Bytes(), make([]byte, page-b.Len())...)
}
