package kernel

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Netlink attributes: length, type, value, padded to four bytes. Each function
// appends one and returns the longer slice.

// attrType masks the flags out of an attribute's type.
const attrType = ^uint16(unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)

func attr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return pad(append(b, value...))
}

func str(b []byte, kind uint16, value string) []byte {
	return attr(b, kind, append([]byte(value), 0))
}

func be32(b []byte, kind uint16, value uint32) []byte {
	return attr(b, kind, binary.BigEndian.AppendUint32(nil, value))
}

func native32(b []byte, kind uint16, value uint32) []byte {
	return attr(b, kind, binary.NativeEndian.AppendUint32(nil, value))
}

// nest appends an attribute whose value is what fill appends.
func nest(b []byte, kind uint16, fill func([]byte) []byte) []byte {
	start := len(b)
	b = fill(attr(b, kind|unix.NLA_F_NESTED, nil))
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b
}

func pad(b []byte) []byte {
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}
