# A lamp that needs a module which nobody has packed.
import dfu

CONFIG = {}


def app():
    import wifi_of_the_new_board

    dfu.run(wifi_of_the_new_board.main())


dfu.guard(app)
