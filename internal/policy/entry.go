package policy

// EntryKind says what an entry of a list is about.
type EntryKind uint8

// The kinds of entries.
const (
	EntryInvalid EntryKind = iota
	EntryAddress           // an address or a prefix
	EntryName              // a name, or a wildcard over names
)

// Canonical returns the one way to write all entries that mean the same, and
// what kind of entry it is. An invalid entry comes back as it is.
func Canonical(entry string) (string, EntryKind) {
	if prefix, reason := parsePrefix(entry); reason == "" {
		if prefix.IsSingleIP() {
			return prefix.Addr().String(), EntryAddress
		}
		return prefix.String(), EntryAddress
	} else if reason != reasonSyntax || endsInNumber(entry) {
		return entry, EntryInvalid
	}
	p, reason := parsePattern(entry)
	switch {
	case reason != "":
		return entry, EntryInvalid
	case !p.wild:
		return p.name, EntryName
	case p.name == "":
		return "*", EntryName
	}
	return "*." + p.name, EntryName
}
