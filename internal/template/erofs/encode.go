package erofs

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"
	"slices"
)

const (
	superMagic  = 0xe0f5e1e2
	superOffset = 1024
	blockBits   = 12

	// Compatible features: the superblock has a checksum; times are mtimes.
	featureChecksum = 1
	featureMtime    = 2

	formatExtended = 1      // bit 0: the 64-byte inode
	formatInline   = 2 << 1 // bits 1-3: content behind the inode
	noBlock        = 0xffffffff
)

var little = binary.LittleEndian

// superblock returns block 0.
func (l *layout) superblock() []byte {
	block := make([]byte, BlockSize)
	sb := block[superOffset:]
	little.PutUint32(sb[0:], superMagic)
	little.PutUint32(sb[8:], featureChecksum|featureMtime)
	sb[12] = blockBits
	little.PutUint16(sb[14:], uint16(l.inodes[0].nid))
	little.PutUint64(sb[16:], uint64(len(l.inodes)))
	little.PutUint32(sb[36:], uint32(l.end/BlockSize))
	little.PutUint32(sb[40:], uint32(l.meta/BlockSize))
	// The checksum covers the block from here with its own field zero; the
	// format wants it without CRC-32C's final inversion.
	sum := crc32.Checksum(sb, crc32.MakeTable(crc32.Castagnoli))
	little.PutUint32(sb[4:], ^sum)
	return block
}

// writeDirectories writes the content that lies in blocks of its own: long
// directories and long link targets.
func (l *layout) writeDirectories(w io.WriterAt) error {
	for _, ino := range l.inodes {
		if ino.inline || ino.node.IsRegular() || ino.size == 0 {
			continue
		}
		if _, err := w.WriteAt(l.content(ino), ino.data); err != nil {
			return err
		}
	}
	return nil
}

// writeInodes writes the inode area.
func (l *layout) writeInodes(w io.WriterAt) error {
	out := bufio.NewWriterSize(io.NewOffsetWriter(w, l.meta), chunkSize)
	var at int64
	for _, ino := range l.inodes {
		if err := pad(out, int64(ino.nid)*slotSize-at); err != nil {
			return err
		}
		at = int64(ino.nid)*slotSize + inodeSize
		if _, err := out.Write(ino.encode()); err != nil {
			return err
		}
		if ino.inline {
			if _, err := out.Write(l.content(ino)); err != nil {
				return err
			}
			at += ino.size
		}
	}
	if err := pad(out, l.end-l.meta-at); err != nil {
		return err
	}
	return out.Flush()
}

func pad(w io.Writer, n int64) error {
	for n > 0 {
		k := min(n, int64(len(zeroBlock)))
		if _, err := w.Write(zeroBlock[:k]); err != nil {
			return err
		}
		n -= k
	}
	return nil
}

func (ino *inode) encode() []byte {
	b := make([]byte, inodeSize)
	format, address := uint16(formatExtended), uint32(ino.data/BlockSize)
	if ino.inline {
		format |= formatInline
		address = noBlock
	}
	n := ino.node
	little.PutUint16(b[0:], format)
	little.PutUint16(b[4:], n.Mode)
	little.PutUint64(b[8:], uint64(ino.size))
	little.PutUint32(b[16:], address)
	little.PutUint32(b[20:], ino.serial)
	little.PutUint32(b[24:], n.UID)
	little.PutUint32(b[28:], n.GID)
	if !n.Mtime.IsZero() {
		little.PutUint64(b[32:], uint64(n.Mtime.Unix()))
		little.PutUint32(b[40:], uint32(n.Mtime.Nanosecond()))
	}
	little.PutUint32(b[44:], ino.nlink)
	return b
}

// content returns what a link or directory holds.
func (l *layout) content(ino *inode) []byte {
	if ino.node.IsSymlink() {
		return []byte(ino.node.Target)
	}
	buf := make([]byte, 0, ino.size)
	for _, group := range direntBlocks(ino.node) {
		buf = append(buf, make([]byte, roundUp(int64(len(buf)))-int64(len(buf)))...)
		buf = l.appendDirents(buf, ino, group)
	}
	return buf
}

// appendDirents appends one block of a directory: fixed-size entries, then
// the names they point at.
func (l *layout) appendDirents(buf []byte, dir *inode, names []string) []byte {
	nameOffset := len(names) * direntSize
	for _, name := range names {
		target := dir
		switch name {
		case ".":
		case "..":
			target = dir.parent
		default:
			target = l.byNode[dir.node.Children[name]]
		}
		buf = little.AppendUint64(buf, target.nid)
		buf = little.AppendUint16(buf, uint16(nameOffset))
		buf = append(buf, dirEntryType[target.node.Mode&modeType], 0)
		nameOffset += len(name)
	}
	for _, name := range names {
		buf = append(buf, name...)
	}
	return buf
}

// modeType masks the file type in a mode.
const modeType = 0xf000

// direntBlocks cuts a directory's sorted names, "." and ".." among them, into
// what fits one block each.
func direntBlocks(dir *Node) [][]string {
	names := append(dir.names(), ".", "..")
	slices.Sort(names)
	var blocks [][]string
	start, used := 0, 0
	for i, name := range names {
		need := direntSize + len(name)
		if used+need > BlockSize {
			blocks = append(blocks, names[start:i])
			start, used = i, 0
		}
		used += need
	}
	return append(blocks, names[start:])
}

// directorySize is the length of content for a directory.
func directorySize(dir *Node) int64 {
	blocks := direntBlocks(dir)
	size := int64(len(blocks)-1) * BlockSize
	for _, name := range blocks[len(blocks)-1] {
		size += direntSize + int64(len(name))
	}
	return size
}
