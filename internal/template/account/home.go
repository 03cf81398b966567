package account

// SudoersLine lets the default user become anyone without a password: what
// runs in a sandbox may be root there.
const SudoersLine = Default + " ALL=(ALL:ALL) NOPASSWD: ALL\n"

// Skeleton is what a fresh home directory holds, by file name.
func Skeleton() map[string]string {
	return map[string]string{
		".profile":     profile,
		".bashrc":      bashrc,
		".bash_logout": "",
	}
}

const profile = `if [ -n "$BASH_VERSION" ] && [ -f "$HOME/.bashrc" ]; then
	. "$HOME/.bashrc"
fi
if [ -d "$HOME/.local/bin" ]; then
	PATH="$HOME/.local/bin:$PATH"
fi
`

const bashrc = `case $- in
*i*) ;;
*) return ;;
esac
HISTCONTROL=ignoreboth
shopt -s checkwinsize histappend
PS1='\u@\h:\w\$ '
alias ls='ls --color=auto' grep='grep --color=auto'
`
