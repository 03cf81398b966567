package files

import (
	"os"
	"path/filepath"
	"syscall"

	"google.golang.org/protobuf/types/known/timestamppb"

	pb "github.com/moat-sandbox/moat/api/filesystem"
	"github.com/moat-sandbox/moat/internal/guest/account"
)

// describe looks at one path with the calling thread's rights.
func describe(path string, book *account.Book) (*pb.EntryInfo, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	e := &pb.EntryInfo{
		Name:         info.Name(),
		Path:         path,
		Type:         entryType(info.Mode()),
		Size:         info.Size(),
		Mode:         uint32(info.Mode().Perm()),
		Permissions:  info.Mode().String(),
		ModifiedTime: timestamppb.New(info.ModTime()),
		Metadata:     readMetadata(path),
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = book.UserName(stat.Uid), book.GroupName(stat.Gid)
	}
	if info.Mode()&os.ModeSymlink != 0 {
		followLink(e)
	}
	return e, nil
}

// followLink gives a link's entry the type and mode of what it leads to.
func followLink(e *pb.EntryInfo) {
	e.Type, e.Mode = pb.FileType_FILE_TYPE_UNSPECIFIED, 0
	end, err := filepath.EvalSymlinks(e.Path)
	if err != nil {
		e.SymlinkTarget = &e.Path
		return
	}
	e.SymlinkTarget = &end
	if target, err := os.Stat(end); err == nil {
		e.Type, e.Mode = entryType(target.Mode()), uint32(target.Mode().Perm())
	}
}

func entryType(mode os.FileMode) pb.FileType {
	switch {
	case mode.IsRegular():
		return pb.FileType_FILE_TYPE_FILE
	case mode.IsDir():
		return pb.FileType_FILE_TYPE_DIRECTORY
	}
	return pb.FileType_FILE_TYPE_UNSPECIFIED
}
