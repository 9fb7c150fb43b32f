#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <vector>

#include "addon.h"
#include "errors.h"

namespace {

constexpr size_t kMaxFds = 253;  // SCM_MAX_FD
constexpr uint32_t kMaxReceive = 16u << 20;

// Closes on the way out, unless released.
class OwnedFd {
 public:
  explicit OwnedFd(int fd) : fd_(fd) {}
  ~OwnedFd() {
    if (fd_ >= 0) close(fd_);
  }
  OwnedFd(const OwnedFd&) = delete;
  OwnedFd& operator=(const OwnedFd&) = delete;
  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

struct Address {
  sockaddr_un name{};
  socklen_t length = 0;
  const sockaddr* get() const { return reinterpret_cast<const sockaddr*>(&name); }
};

Address AddressOf(Napi::Env env, const std::string& path, const char* syscall) {
  Address address;
  if (path.empty()) ThrowErrno(env, EINVAL, syscall);
  if (path.size() >= sizeof address.name.sun_path) ThrowErrno(env, ENAMETOOLONG, syscall, path);
  address.name.sun_family = AF_UNIX;
  std::memcpy(address.name.sun_path, path.c_str(), path.size() + 1);
  address.length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return address;
}

int UnixSocket(Napi::Env env) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) ThrowErrno(env, errno, "socket");
  return fd;
}

void SetNonBlocking(Napi::Env env, int fd) {
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) != 0) ThrowErrno(env, errno, "fcntl");
}

Napi::Value ListenUnix(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = SystemString(info[0], "path");
  const auto mode = static_cast<mode_t>(info[1].As<Napi::Number>().Uint32Value() & 07777);
  const int backlog = info[2].As<Napi::Number>().Int32Value();
  const Address address = AddressOf(env, path, "bind");
  OwnedFd fd(UnixSocket(env));
  SetNonBlocking(env, fd.get());
  // The socket file takes its mode from the descriptor, less the umask: it is never more open than asked for.
  if (fchmod(fd.get(), mode) != 0) ThrowErrno(env, errno, "fchmod", path);
  if (bind(fd.get(), address.get(), address.length) != 0) ThrowErrno(env, errno, "bind", path);
  const char* failed = nullptr;
  if (chmod(path.c_str(), mode) != 0) {
    failed = "chmod";
  } else if (listen(fd.get(), backlog) != 0) {
    failed = "listen";
  }
  if (failed != nullptr) {
    const int error = errno;
    unlink(path.c_str());
    ThrowErrno(env, error, failed, path);
  }
  return Napi::Number::New(env, fd.release());
}

Napi::Value ConnectUnix(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = SystemString(info[0], "path");
  const Address address = AddressOf(env, path, "connect");
  OwnedFd fd(UnixSocket(env));
  int result;
  do {
    result = connect(fd.get(), address.get(), address.length);
  } while (result != 0 && errno == EINTR);
  if (result != 0) ThrowErrno(env, errno, "connect", path);
  SetNonBlocking(env, fd.get());
  return Napi::Number::New(env, fd.release());
}

Napi::Value SocketPair(const Napi::CallbackInfo& info) {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, fds) != 0) {
    ThrowErrno(info.Env(), errno, "socketpair");
  }
  Napi::Array pair = Napi::Array::New(info.Env(), 2);
  pair.Set(0u, fds[0]);
  pair.Set(1u, fds[1]);
  return pair;
}

Napi::Value SendFds(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int socket = Descriptor(info[0]);
  const Bytes bytes = BytesOf(info[1]);
  const auto list = info[2].As<Napi::Array>();
  if (!list.IsArray()) throw Napi::TypeError::New(env, "fds must be an array");
  std::vector<int> fds;
  for (uint32_t i = 0; i < list.Length(); i++) fds.push_back(Descriptor(list.Get(i)));
  if (fds.size() > kMaxFds) throw Napi::RangeError::New(env, "at most 253 descriptors go with one message");
  if (bytes.length == 0) throw Napi::RangeError::New(env, "descriptors need at least one byte to go with");

  iovec part{const_cast<uint8_t*>(bytes.data), bytes.length};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)]{};
  if (!fds.empty()) {
    const size_t size = fds.size() * sizeof(int);
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(size);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(size);
    std::memcpy(CMSG_DATA(header), fds.data(), size);
  }
  ssize_t sent;
  do {
    sent = sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  } while (sent < 0 && errno == EINTR);
  if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) sent = 0;
  if (sent < 0) ThrowErrno(env, errno, "sendmsg");
  return Napi::Number::New(env, static_cast<double>(sent));
}

std::vector<int> ReceivedFds(msghdr& message) {
  std::vector<int> fds;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    const size_t before = fds.size();
    fds.resize(before + count);
    std::memcpy(fds.data() + before, CMSG_DATA(header), count * sizeof(int));
  }
  return fds;
}

Napi::Value RecvFds(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int socket = Descriptor(info[0]);
  const double wanted = info[1].As<Napi::Number>().DoubleValue();
  if (!(wanted >= 1 && wanted <= kMaxReceive)) throw Napi::RangeError::New(env, "maxBytes must be from 1 to 16 MiB");

  std::vector<uint8_t> buffer(static_cast<size_t>(wanted));
  iovec part{buffer.data(), buffer.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxFds)]{};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got;
  do {
    got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  } while (got < 0 && errno == EINTR);
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return env.Undefined();
  if (got < 0) ThrowErrno(env, errno, "recvmsg");

  const std::vector<int> fds = ReceivedFds(message);
  if ((message.msg_flags & MSG_CTRUNC) != 0) {  // our table of descriptors is full: some were lost
    for (const int fd : fds) close(fd);
    ThrowErrno(env, EMFILE, "recvmsg");
  }
  Napi::Array list = Napi::Array::New(env, fds.size());
  for (size_t i = 0; i < fds.size(); i++) list.Set(static_cast<uint32_t>(i), fds[i]);
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("bytes", CopyOut(env, buffer.data(), static_cast<size_t>(got)));
  answer.Set("fds", list);
  return answer;
}

Napi::Value PeerCredentials(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  ucred peer{};
  socklen_t length = sizeof peer;
  if (getsockopt(Descriptor(info[0]), SOL_SOCKET, SO_PEERCRED, &peer, &length) != 0) {
    ThrowErrno(env, errno, "getsockopt");
  }
  Napi::Object answer = Napi::Object::New(env);
  answer.Set("pid", Napi::Number::New(env, peer.pid));
  answer.Set("uid", Napi::Number::New(env, peer.uid));
  answer.Set("gid", Napi::Number::New(env, peer.gid));
  return answer;
}

void SetNotSentLowat(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const int fd = Descriptor(info[0]);
  const double wanted = info[1].As<Napi::Number>().DoubleValue();
  if (!(wanted >= 1 && wanted <= INT32_MAX)) throw Napi::RangeError::New(env, "bytes must be from 1 to 2^31 - 1");
  const int bytes = static_cast<int>(wanted);
  if (setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &bytes, sizeof bytes) != 0) ThrowErrno(env, errno, "setsockopt");
}

void SendDatagram(const Napi::CallbackInfo& info) {
  const Napi::Env env = info.Env();
  const std::string path = SystemString(info[0], "path");
  const std::string text = info[1].As<Napi::String>().Utf8Value();
  Address address = AddressOf(env, path, "sendto");
  if (path[0] == '@') {
    // in the abstract namespace a name has no NUL behind it, but one before it
    address.name.sun_path[0] = '\0';
    address.length -= 1;
  }
  OwnedFd fd(socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) ThrowErrno(env, errno, "socket");
  const int flags = MSG_NOSIGNAL | MSG_DONTWAIT;
  if (sendto(fd.get(), text.data(), text.size(), flags, address.get(), address.length) < 0) {
    ThrowErrno(env, errno, "sendto", path);
  }
}

void Close(const Napi::CallbackInfo& info) {
  // After EINTR the descriptor is gone as well on Linux: closing again could hit someone else's.
  if (close(Descriptor(info[0])) != 0 && errno != EINTR) ThrowErrno(info.Env(), errno, "close");
}

}  // namespace

void InitSockets(Napi::Env env, Napi::Object exports) {
  exports.Set("listenUnix", Napi::Function::New(env, ListenUnix, "listenUnix"));
  exports.Set("connectUnix", Napi::Function::New(env, ConnectUnix, "connectUnix"));
  exports.Set("socketpair", Napi::Function::New(env, SocketPair, "socketpair"));
  exports.Set("sendFds", Napi::Function::New(env, SendFds, "sendFds"));
  exports.Set("recvFds", Napi::Function::New(env, RecvFds, "recvFds"));
  exports.Set("peerCredentials", Napi::Function::New(env, PeerCredentials, "peerCredentials"));
  exports.Set("setNotSentLowat", Napi::Function::New(env, SetNotSentLowat, "setNotSentLowat"));
  exports.Set("sendDatagram", Napi::Function::New(env, SendDatagram, "sendDatagram"));
  exports.Set("close", Napi::Function::New(env, Close, "close"));
}
